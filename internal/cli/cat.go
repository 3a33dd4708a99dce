package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/unitdir"
)

func catCommand(s *session) *cobra.Command {
	f := &fileFlags{}
	c := &cobra.Command{
		Use: "cat UNIT…", Short: "Print the files of units, drop-ins included", Args: atLeastOne, ValidArgsFunction: s.completeFiles(f),
		RunE: func(cmd *cobra.Command, args []string) error { return s.cat(cmd.Context(), args, f) },
	}
	f.add(c.Flags())
	return c
}

func (s *session) cat(ctx context.Context, args []string, f *fileFlags) error {
	t := s.tree(ctx, f)
	names, err := mangled(args)
	if err != nil {
		return err
	}
	rooted := make([]string, len(t.Paths))
	for i, p := range t.Paths {
		rooted[i] = filepath.Join("/", t.Root, p)
	}
	for i, name := range names {
		u, err := t.Find(name)
		if err != nil {
			return &Exit{exitFailure, fmt.Errorf("No files found for %s: %w", name, err)} //lint:ignore ST1005 the words are systemctl's
		}
		if u.Masked != "" {
			fmt.Fprintf(s.Out, "# %s is masked by %s.\n", name, filepath.Join(u.Masked, name))
			continue
		}
		for j, file := range append([]string{filepath.Join("/", t.Root, u.Path)}, unitdir.Dropins(rooted, u.Name)...) {
			data, err := os.ReadFile(file)
			if err != nil {
				return failedTo("cat "+name, err)
			}
			if i+j > 0 {
				fmt.Fprintln(s.Out)
			}
			fmt.Fprintf(s.Out, "%s\n%s", s.paint(grey, "# "+file), data)
		}
	}
	return nil
}
