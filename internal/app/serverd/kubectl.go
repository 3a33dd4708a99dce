package serverd

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/plugin"

	"legion.dev/legion/internal/apiserver"
)

// tryKubectl runs kubectl if the arguments are [--dir DIR] kubectl ….
func tryKubectl(args []string) (status int, done bool) {
	dir := defaultDir()
	for len(args) > 0 {
		switch {
		case args[0] == "kubectl":
			return runKubectl(dir, args[1:]), true
		case args[0] == "--dir" && len(args) > 1:
			dir, args = args[1], args[2:]
		case strings.HasPrefix(args[0], "--dir="):
			dir, args = strings.TrimPrefix(args[0], "--dir="), args[1:]
		default:
			return 0, false
		}
	}
	return 0, false
}

// runKubectl is upstream's kubectl, on the fleet in dir unless KUBECONFIG or a
// flag says otherwise.
func runKubectl(dir string, args []string) int {
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	if os.Getenv("KUBECONFIG") == "" {
		path := apiserver.AdminKubeconfig(dir)
		if _, err := os.Stat(path); err == nil {
			*flags.KubeConfig = path
		} else if !namesServer(args) {
			fmt.Fprintf(os.Stderr, "legion-server kubectl: no fleet in %s: %v (start one with 'legion up --dir %s', or name another with --dir, LEGION_DIR or KUBECONFIG)\n", dir, err, dir)
			return 1
		}
	}
	command := cmd.NewDefaultKubectlCommandWithArgs(cmd.KubectlOptions{
		PluginHandler: cmd.NewDefaultPluginHandler(plugin.ValidPluginFilenamePrefixes),
		Arguments:     append([]string{"kubectl"}, args...),
		ConfigFlags:   flags,
		IOStreams:     genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	})
	command.SetArgs(args)
	return cli.Run(command)
}

// namesServer tells whether kubectl's own arguments say which server, or need
// none.
func namesServer(args []string) bool {
	for _, arg := range args {
		for _, flag := range []string{"--kubeconfig", "--server", "-s", "--client", "--help", "-h"} {
			if arg == flag || strings.HasPrefix(arg, flag+"=") {
				return true
			}
		}
	}
	return len(args) == 0 || args[0] == "help" || args[0] == "completion" || args[0] == "options"
}

// kubectlHelp only shows the verb in the help; tryKubectl carries it out.
func kubectlHelp() *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl …",
		Short:              "Kubernetes' kubectl, on this fleet ([--dir DIR] stands before the verb)",
		DisableFlagParsing: true,
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("only --dir DIR may stand before kubectl")
		},
	}
}
