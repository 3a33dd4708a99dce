package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func kubectlCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl [--dir DIR] ARGS…",
		Short:              "Run the built-in kubectl on the fleet",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return runServer(s, "kubectl", args)
		},
	}
}

// runServer becomes legion-server with one of its sub-commands, as git becomes
// its own: what needs Kubernetes' code is linked there only.
func runServer(s *session, verb string, args []string) error {
	dir, args := cutDir(args)
	bin, err := binDir()
	if err != nil {
		return err
	}
	kubeconfig, err := fleetKubeconfig(s, dir)
	if err != nil {
		return err
	}
	program := filepath.Join(bin, "legion-server")
	env := os.Environ()
	if kubeconfig != "" {
		env = append(slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "KUBECONFIG=") }), "KUBECONFIG="+kubeconfig)
	}
	// By this name it speaks of itself as what the person has typed.
	err = unix.Exec(program, append([]string{"legion", verb}, args...), env)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot run legion %s: legion-server, which carries it out, is not beside legion in %s; `make build` builds it", verb, bin)
	}
	return fmt.Errorf("cannot run %s: %w", program, err)
}

// fleetKubeconfig is the file to put into KUBECONFIG, "" to leave that alone: a
// fleet that was named goes first, then the user's own KUBECONFIG, then the
// fleet in the default directory, if there is one.
func fleetKubeconfig(s *session, dir string) (string, error) {
	named := dir != "" || s.Getenv("LEGION_DIR") != ""
	if !named && s.Getenv("KUBECONFIG") != "" {
		return "", nil
	}
	dir, err := fleetDir(s, dir)
	if err != nil {
		if named {
			return "", err
		}
		return "", nil
	}
	path := filepath.Join(dir, "admin.kubeconfig")
	if _, err := os.Stat(path); err != nil {
		if named {
			return "", fmt.Errorf("there is no fleet in %s: %w; `legion up --dir %[1]s` starts one", dir, err)
		}
		return "", nil
	}
	return path, nil
}

// cutDir takes --dir out of arguments that are somebody else's; what follows
// "--" is left alone.
func cutDir(args []string) (string, []string) {
	dir := ""
	var rest []string
	for i := 0; i < len(args); i++ {
		switch {
		case args[i] == "--":
			return dir, append(rest, args[i:]...)
		case args[i] == "--dir" && i+1 < len(args):
			i++
			dir = args[i]
		case strings.HasPrefix(args[i], "--dir="):
			dir = strings.TrimPrefix(args[i], "--dir=")
		default:
			rest = append(rest, args[i])
		}
	}
	return dir, rest
}
