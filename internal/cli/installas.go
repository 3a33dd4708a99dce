package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

func installAsSystemdCommand(s *session) *cobra.Command {
	var root, dir, to string
	var force bool
	c := &cobra.Command{
		Use:   "install-as-systemd",
		Short: "Make links by which legion is called as systemctl, journalctl and the others",
		Long: "Make links to legion under the names of systemd's programs. What is there already is left, unless --force is given.\n" +
			"Then maintainer scripts and configuration tools find the commands they call.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if to == "" {
				self, err := os.Executable()
				if err != nil {
					return &Exit{exitFailure, fmt.Errorf("cannot tell where legion is; name it with --target: %w", err)}
				}
				to = self
			}
			return s.installAs(filepath.Join(root, dir), to, force)
		},
	}
	c.Flags().StringVar(&root, "root", "/", "directory of the system to make them in")
	c.Flags().StringVar(&dir, "dir", "/usr/bin", "directory of the links, below the root")
	c.Flags().StringVar(&to, "target", "", "what the links point to, as the system sees it (this program)")
	c.Flags().BoolVar(&force, "force", false, "replace programs of that name")
	return c
}

func (s *session) installAs(dir, to string, force bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return &Exit{exitFailure, fmt.Errorf("cannot make the directory of links: %w", err)}
	}
	kept := false
	for _, p := range personalities() {
		link := filepath.Join(dir, p.name)
		have, err := os.Readlink(link)
		if err == nil && have == to {
			continue
		}
		if _, err := os.Lstat(link); !errors.Is(err, os.ErrNotExist) && !force {
			fmt.Fprintf(s.Err, "%s is there already; it is left (--force replaces it)\n", link)
			kept = true
			continue
		}
		temporary := filepath.Join(dir, fmt.Sprintf(".%s.%d", p.name, os.Getpid()))
		if err := os.Symlink(to, temporary); err != nil {
			return &Exit{exitFailure, fmt.Errorf("cannot make the link: %w", err)}
		}
		if err := os.Rename(temporary, link); err != nil {
			_ = os.Remove(temporary)
			return &Exit{exitFailure, fmt.Errorf("cannot make the link: %w", err)}
		}
		fmt.Fprintf(s.Out, "%s → %s\n", link, to)
	}
	if kept {
		return &Exit{Status: exitFailure}
	}
	return nil
}
