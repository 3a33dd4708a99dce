package serverd

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/spf13/cobra"
	metav1labels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/internal/apiserver"
	"legion.dev/legion/internal/token"
)

func tokenCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "token",
		Short: "Join tokens, with which nodes come into the fleet",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var dir, kubeconfig, server, labels string
	var wanted apiserver.NewToken
	create := &cobra.Command{
		Use:   "create",
		Short: "Make a join token and print the line that 'legion join' takes on a host",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if wanted.Life < 0 {
				return fmt.Errorf("--ttl %s: a token cannot end before it begins", wanted.Life)
			}
			if wanted.Labels, err = metav1labels.ConvertSelectorToLabelsMap(labels); err != nil {
				return fmt.Errorf("--labels %s: %w", labels, err)
			}
			path := kubeconfig
			if path == "" {
				path = apiserver.AdminKubeconfig(dir)
			}
			config, err := clientcmd.BuildConfigFromFlags("", path)
			if err != nil {
				return fmt.Errorf("cannot make a join token: no fleet found: %w (name it with --dir or --kubeconfig)", err)
			}
			if server == "" {
				server = config.Host
				warnLoopback(cmd, server)
			}
			if err := token.CheckServer(server); err != nil {
				return fmt.Errorf("--server: %w", err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			defer cancel()
			return createToken(ctx, cmd, config, server, wanted)
		},
	}
	flags := create.Flags()
	flags.StringVar(&dir, "dir", defaultDir(), "the fleet's directory")
	flags.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig `file` of the fleet, in place of --dir")
	flags.StringVar(&server, "server", "", "`URL` by which hosts reach the server (default: that of the kubeconfig)")
	flags.DurationVar(&wanted.Life, "ttl", 24*time.Hour, "how long the token lets nodes join; 0 is for ever")
	flags.IntVar(&wanted.Uses, "uses", 1, "how many nodes may join with it; 0 is any number")
	flags.StringVar(&labels, "labels", "", "`k=v,…` labels of the nodes that join with it")
	flags.StringVar(&wanted.Description, "description", "", "what the token is for")
	parent.AddCommand(create)
	return parent
}

// warnLoopback says that other machines do not reach the server there.
func warnLoopback(cmd *cobra.Command, server string) {
	u, err := url.Parse(server)
	if err != nil {
		return
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		cmd.PrintErrf("legion-server: only this machine reaches the server at %s: for other hosts start it with --listen, and name its address with --server\n", server)
	}
}

func createToken(ctx context.Context, cmd *cobra.Command, config *rest.Config, server string, wanted apiserver.NewToken) error {
	if err := rest.LoadTLSFiles(config); err != nil {
		return fmt.Errorf("cannot make a join token: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("cannot make a join token: %w", err)
	}
	made, err := apiserver.CreateToken(ctx, client, config.CAData, wanted)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), token.Line{Token: made, Server: server})
	return err
}
