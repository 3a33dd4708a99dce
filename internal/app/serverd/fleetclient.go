package serverd

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/internal/apiserver"
)

// fleetFlags say which fleet, and which namespace of it, a verb is about.
type fleetFlags struct {
	dir, kubeconfig, namespace string
}

func (f *fleetFlags) add(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.dir, "dir", defaultDir(), "the fleet's directory")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig `file` of the fleet, in place of --dir")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "namespace (default: the kubeconfig's)")
}

// connect returns a client of the fleet; the namespace is filled in.
func (f *fleetFlags) connect() (kubernetes.Interface, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	switch {
	case f.kubeconfig != "":
		rules.ExplicitPath = f.kubeconfig
	case os.Getenv("KUBECONFIG") == "":
		rules.ExplicitPath = apiserver.AdminKubeconfig(f.dir)
	}
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no fleet found: %w (name it with --dir, LEGION_DIR or KUBECONFIG)", err)
	}
	if f.namespace == "" {
		if f.namespace, _, err = loader.Namespace(); err != nil {
			return nil, err
		}
	}
	config.QPS = -1
	return kubernetes.NewForConfig(config)
}

// daemonSetName reads ds/NAME, as kubectl takes it, or NAME alone.
func daemonSetName(arg string) (string, error) {
	kind, name, found := strings.Cut(arg, "/")
	if !found {
		kind, name = "ds", arg
	}
	kind, _, _ = strings.Cut(strings.ToLower(kind), ".")
	if kind != "ds" && kind != "daemonset" && kind != "daemonsets" {
		return "", fmt.Errorf("%s is no DaemonSet; name one as ds/NAME", arg)
	}
	if name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("%q names no DaemonSet; write ds/NAME", arg)
	}
	return name, nil
}

func oneDaemonSet(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%s takes one DaemonSet, as ds/NAME", cmd.CommandPath())
	}
	_, err := daemonSetName(args[0])
	return err
}
