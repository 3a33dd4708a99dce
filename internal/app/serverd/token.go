package serverd

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/internal/apiserver"
)

func tokenCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "token",
		Short: "Join tokens, with which nodes come into the fleet",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var dir, kubeconfig, description string
	var life time.Duration
	create := &cobra.Command{
		Use:   "create",
		Short: "Make a join token and print it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if life < 0 {
				return fmt.Errorf("--ttl %s: a token cannot end before it begins", life)
			}
			path := kubeconfig
			if path == "" {
				path = apiserver.AdminKubeconfig(dir)
			}
			config, err := clientcmd.BuildConfigFromFlags("", path)
			if err != nil {
				return fmt.Errorf("cannot make a join token: no fleet found: %w (name it with --dir or --kubeconfig)", err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			defer cancel()
			return createToken(ctx, cmd, config, life, description)
		},
	}
	flags := create.Flags()
	flags.StringVar(&dir, "dir", defaultDir(), "the fleet's directory")
	flags.StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig `file` of the fleet, in place of --dir")
	flags.DurationVar(&life, "ttl", 24*time.Hour, "how long the token lets nodes join; 0 is for ever")
	flags.StringVar(&description, "description", "", "what the token is for")
	parent.AddCommand(create)
	return parent
}

func createToken(ctx context.Context, cmd *cobra.Command, config *rest.Config, life time.Duration, description string) error {
	if err := rest.LoadTLSFiles(config); err != nil {
		return fmt.Errorf("cannot make a join token: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("cannot make a join token: %w", err)
	}
	made, err := apiserver.CreateToken(ctx, client, config.CAData, life, description)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), made)
	return err
}
