package serverd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"

	"legion.dev/legion/internal/daemonset"
)

// planTime bounds the reading of a fleet.
const planTime = 60 * time.Second

func planCommand() *cobra.Command {
	var in fleetFlags
	var file, output string
	c := &cobra.Command{
		Use:   "plan ds/NAME | plan -f FILE",
		Short: "Show what an update does on each node, and change nothing",
		Long: "Show for each node whether it is eligible or why not, and the next steps in order with their reasons.\n" +
			"With -f, what would be done if the DaemonSets of the file were applied. Nothing is ever changed.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("-o %s: only json is known, and nothing for text", output)
			}
			if (file == "") == (len(args) == 0) {
				return errors.New("name either a DaemonSet, as ds/NAME, or a file with -f FILE")
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), planTime)
			defer cancel()
			client, err := in.connect()
			if err != nil {
				return fmt.Errorf("cannot plan: %w", err)
			}
			var sets []*appsv1.DaemonSet
			if file != "" {
				sets, err = fromFile(ctx, client, file, in.namespace, cmd.InOrStdin())
			} else {
				sets, err = fromServer(ctx, client, args[0], in.namespace)
			}
			if err != nil {
				return err
			}
			return printPlans(ctx, cmd.OutOrStdout(), client, sets, output)
		},
	}
	in.add(c)
	c.Flags().StringVarP(&file, "filename", "f", "", "plan the DaemonSets of this `file` as if it were applied; - is the standard input")
	c.Flags().Bool("dry-run", true, "nothing is changed, with the flag or without it")
	c.Flags().StringVarP(&output, "output", "o", "", "json for programs")
	return c
}

func fromServer(ctx context.Context, client kubernetes.Interface, arg, namespace string) ([]*appsv1.DaemonSet, error) {
	name, err := daemonSetName(arg)
	if err != nil {
		return nil, err
	}
	ds, err := client.AppsV1().DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("cannot plan ds/%s in namespace %s: %w", name, namespace, err)
	}
	return []*appsv1.DaemonSet{ds}, nil
}

// fromFile reads DaemonSets and has the server fill in and check each as if it
// were applied, in a dry run.
func fromFile(ctx context.Context, client kubernetes.Interface, path, namespace string, stdin io.Reader) ([]*appsv1.DaemonSet, error) {
	source := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("cannot plan: %w", err)
		}
		defer f.Close()
		source = f
	}
	var sets []*appsv1.DaemonSet
	for d := yaml.NewYAMLOrJSONDecoder(source, 4096); ; {
		content := map[string]any{}
		err := d.Decode(&content)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("cannot plan: %s is not YAML: %w", path, err)
		}
		if content["kind"] != "DaemonSet" || content["apiVersion"] != "apps/v1" {
			continue
		}
		want := &appsv1.DaemonSet{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(content, want, true); err != nil {
			return nil, fmt.Errorf("cannot plan: %s: %w", path, err)
		}
		if want.Namespace == "" {
			want.Namespace = namespace
		}
		ds, err := tryOut(ctx, client, want)
		if err != nil {
			return nil, fmt.Errorf("cannot plan ds/%s of %s: %w", want.Name, path, err)
		}
		sets = append(sets, ds)
	}
	if len(sets) == 0 {
		return nil, fmt.Errorf("cannot plan: %s has no DaemonSet of apps/v1", path)
	}
	return sets, nil
}

// tryOut returns what the server would make of a DaemonSet, without storing it.
func tryOut(ctx context.Context, client kubernetes.Interface, want *appsv1.DaemonSet) (*appsv1.DaemonSet, error) {
	api, dry := client.AppsV1().DaemonSets(want.Namespace), []string{metav1.DryRunAll}
	live, err := api.Get(ctx, want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		made, err := api.Create(ctx, want, metav1.CreateOptions{DryRun: dry})
		if err != nil {
			return nil, err
		}
		made.UID = "" // it has no pods
		return made, nil
	}
	if err != nil {
		return nil, err
	}
	next := live.DeepCopy()
	next.ResourceVersion = "" // what others write meanwhile is not in the way
	next.Spec, next.Labels, next.Annotations = want.Spec, want.Labels, maps.Clone(want.Annotations)
	for _, key := range []string{appsv1.DeprecatedTemplateGeneration, daemonset.RolledBackKey} {
		if value, ok := live.Annotations[key]; ok {
			metav1.SetMetaDataAnnotation(&next.ObjectMeta, key, value)
		}
	}
	return api.Update(ctx, next, metav1.UpdateOptions{DryRun: dry})
}
