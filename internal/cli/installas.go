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
			"Then maintainer scripts and configuration tools find the commands they call.\n" +
			"Beside them, in share/dbus-1/system.d, goes the policy by which the system bus lets legiond start units for it.",
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
	if err := s.busPolicy(filepath.Join(dir, "../share/dbus-1/system.d/org.freedesktop.systemd1.conf")); err != nil {
		return &Exit{exitFailure, fmt.Errorf("cannot let legiond start units for the system bus: %w", err)}
	}
	if kept {
		return &Exit{Status: exitFailure}
	}
	return nil
}

// busPolicy writes the policy of the system bus for the name that it knows the
// service manager by (dbus-daemon(1)), unless systemd's own is there.
func (s *session) busPolicy(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	const policy = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<!-- For legiond in systemd's place; written by legion install-as-systemd. -->
<busconfig>
  <policy user="root">
    <allow own="org.freedesktop.systemd1"/>
    <allow send_destination="org.freedesktop.systemd1"/>
    <allow receive_sender="org.freedesktop.systemd1"/>
    <allow receive_interface="org.freedesktop.systemd1.Activator" receive_member="ActivationRequest"/>
  </policy>
</busconfig>
`
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(policy), 0o644); err != nil {
		return err
	}
	fmt.Fprintln(s.Out, path)
	return nil
}
