package serverd

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/daemonset"
)

func rolloutCommand() *cobra.Command {
	var in fleetFlags
	parent := &cobra.Command{
		Use:   "rollout",
		Short: "Watch, pause, resume, undo and restart updates",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	in.add(parent)
	parent.AddCommand(statusCommand(&in), pauseCommand(&in, true), pauseCommand(&in, false))
	for verb, short := range map[string]string{
		"undo":    "Bring back an earlier revision",
		"history": "List the revisions",
		"restart": "Replace all pods, in the order and at the pace of an update",
	} {
		// kubectl's own, with its flags.
		parent.AddCommand(&cobra.Command{
			Use: verb + " ds/NAME", Short: short, DisableFlagParsing: true,
			RunE: func(_ *cobra.Command, args []string) error {
				dir, args := takeDir(args)
				if status := runKubectl(dir, append([]string{"rollout", verb}, args...)); status != 0 {
					return exitStatus(status)
				}
				return nil
			},
		})
	}
	return parent
}

// takeDir takes --dir, which kubectl does not know, out of its arguments.
func takeDir(args []string) (dir string, rest []string) {
	dir = defaultDir()
	for i := 0; i < len(args); i++ {
		value, is := strings.CutPrefix(args[i], "--dir=")
		switch {
		case is:
			dir = value
		case args[i] == "--dir" && i+1 < len(args):
			i++
			dir = args[i]
		default:
			rest = append(rest, args[i])
		}
	}
	return dir, rest
}

// exitStatus ends the program with a status; what is wrong has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func pauseCommand(in *fleetFlags, pause bool) *cobra.Command {
	verb, short, done := "resume", "Let a paused update go on", "resumed"
	if pause {
		verb, short, done = "pause", "Hold an update where it is", "paused"
	}
	return &cobra.Command{
		Use: verb + " ds/NAME", Short: short, Args: oneDaemonSet,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := daemonSetName(args[0])
			if err != nil {
				return err
			}
			client, err := in.connect()
			if err != nil {
				return fmt.Errorf("cannot %s ds/%s: %w", verb, name, err)
			}
			var value any
			if pause {
				value = "true"
			}
			patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{daemonset.PausedKey: value}}})
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Second)
			defer cancel()
			if _, err := client.AppsV1().DaemonSets(in.namespace).Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				return fmt.Errorf("cannot %s ds/%s in namespace %s: %w", verb, name, in.namespace, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "ds/%s %s\n", name, done)
			return err
		},
	}
}
