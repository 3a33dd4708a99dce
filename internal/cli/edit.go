package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"legion.dev/legion/internal/unitlink"
)

// editFlags are those of edit.
type editFlags struct {
	dropin string
	stdin  bool
}

func (e *editFlags) add(set *pflag.FlagSet) {
	set.StringVar(&e.dropin, "drop-in", "override.conf", "the name of the drop-in")
	set.BoolVar(&e.stdin, "stdin", false, "take the text from standard input, and ask no editor")
}

func editCommand(s *session) *cobra.Command {
	f, e := &fileFlags{}, editFlags{}
	c := &cobra.Command{
		Use: "edit UNIT…", Short: "Change units by a drop-in, or with --full by a copy of the file", Args: atLeastOne, ValidArgsFunction: s.completeFiles(f),
		RunE: func(cmd *cobra.Command, args []string) error { return s.edit(cmd.Context(), args, f, e) },
	}
	f.add(c.Flags())
	e.add(c.Flags())
	c.Flags().BoolVar(&f.force, "force", false, "the unit need not exist")
	c.Flags().BoolVar(&f.full, "full", false, "a copy of the whole unit file")
	return c
}

func revertCommand(s *session) *cobra.Command {
	return s.fileCommand("revert", "Undo edit and mask: remove the drop-ins of units, and files that go before the distribution's")
}

func (s *session) edit(ctx context.Context, args []string, f *fileFlags, e editFlags) error {
	t := s.tree(ctx, f)
	names, err := mangled(args)
	if err != nil {
		return err
	}
	var given []byte
	if e.stdin {
		if given, err = io.ReadAll(s.In); err != nil {
			return failedTo("read standard input", err)
		}
	}
	changed := false
	for _, name := range names {
		path, text, err := t.Editable(name, e.dropin, f.full, unitlink.How{Runtime: f.runtime, Force: f.force})
		if errors.Is(err, unitlink.ErrNotFound) {
			return &Exit{exitFailure, fmt.Errorf("No files found for %s.\nRun 'edit --force --full %s' to create a new unit.", name, name)} //lint:ignore ST1005 the words are systemctl's
		}
		if err == nil && !e.stdin {
			given, err = s.askEditor(ctx, filepath.Base(path), text)
		}
		if err != nil {
			return failedTo("edit "+name, err)
		}
		if len(bytes.TrimSpace(given)) == 0 {
			fmt.Fprintf(s.Err, "%s is not written: there is nothing in it.\n", t.File(path))
			continue
		}
		if err := t.Replace(path, given); err != nil {
			return failedTo("edit "+name, err)
		}
		changed = true
		if !f.quiet {
			fmt.Fprintf(s.Err, "Successfully installed edited file '%s'.\n", t.File(path))
		}
	}
	if f.root != "" {
		return nil
	}
	return s.follow(ctx, "edit", names, f, changed)
}

// askEditor has the person's editor change the text.
func (s *session) askEditor(ctx context.Context, name string, text []byte) ([]byte, error) {
	editor := "editor"
	for _, variable := range []string{"SYSTEMD_EDITOR", "EDITOR", "VISUAL"} {
		if v := os.Getenv(variable); v != "" {
			editor = v
			break
		}
	}
	dir, err := os.MkdirTemp("", "legion-edit-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	// The variable may hold arguments, too.
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", editor+` "$1"`, "sh", file)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = s.In, s.Out, s.Err
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s (of SYSTEMD_EDITOR, EDITOR or VISUAL): %w", editor, err)
	}
	return os.ReadFile(file)
}
