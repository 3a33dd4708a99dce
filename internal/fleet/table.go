package fleet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// wideFleet is how many nodes still get a column each.
const wideFleet = 6

// Summary prints the DaemonSets and where they run, and what to do next.
func (f *Fleet) Summary(ctx context.Context) error {
	client, err := openAPI(f.Kubeconfig())
	if err != nil {
		return err
	}
	sets, err := get[list[daemonSet]](ctx, client, "/apis/apps/v1/daemonsets")
	if err != nil {
		return err
	}
	pods, err := get[list[pod]](ctx, client, "/api/v1/pods")
	if err != nil {
		return err
	}
	nodes, err := get[list[node]](ctx, client, "/api/v1/nodes")
	if err != nil {
		return err
	}
	if len(sets.Items) > 0 {
		f.table(sets.Items, pods.Items, nodes.Items)
		fmt.Fprintln(f.Out)
	}
	f.next(sets.Items, nodes.Items)
	return nil
}

func (f *Fleet) table(sets []daemonSet, pods []pod, nodes []node) {
	w := tabwriter.NewWriter(f.Out, 0, 8, 3, ' ', 0)
	defer w.Flush()
	wide := len(nodes) <= wideFleet
	head := []string{"DAEMONSET", "READY"}
	slices.SortFunc(nodes, func(a, b node) int { return strings.Compare(a.Metadata.Name, b.Metadata.Name) })
	if wide {
		for _, n := range nodes {
			head = append(head, n.Metadata.Name)
		}
	} else {
		head = append(head, "NOT READY ON")
	}
	fmt.Fprintln(w, strings.Join(head, "\t"))
	for _, d := range sets {
		row := []string{d.Metadata.Name, fmt.Sprintf("%d/%d", d.Status.Ready, d.Status.Desired)}
		if d.Metadata.Namespace != "default" {
			row[0] = d.Metadata.Namespace + "/" + row[0]
		}
		var late []string
		for _, n := range nodes {
			word := podWord(d, n.Metadata.Name, pods)
			if wide {
				row = append(row, word)
			} else if word != "running" && word != "-" {
				late = append(late, n.Metadata.Name+" ("+word+")")
			}
		}
		if !wide {
			row = append(row, few(late))
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
}

// podWord says in a word how a DaemonSet does on a node.
func podWord(d daemonSet, node string, pods []pod) string {
	for _, p := range pods {
		owned := slices.ContainsFunc(p.Metadata.Owners, func(o ownerReference) bool {
			return o.Kind == "DaemonSet" && o.Name == d.Metadata.Name
		})
		if !owned || p.Spec.NodeName != node || p.Metadata.Namespace != d.Metadata.Namespace || p.Metadata.Deletion != nil {
			continue
		}
		for _, c := range p.Status.Containers {
			if c.State.Waiting != nil && c.State.Waiting.Reason != "" {
				return c.State.Waiting.Reason
			}
		}
		switch {
		case isTrue(p.Status.Conditions, "Ready"):
			return "running"
		case p.Status.Phase == "Running":
			return "not ready"
		default:
			return strings.ToLower(p.Status.Phase)
		}
	}
	return "-"
}

// next prints the kubeconfig's path and three commands.
func (f *Fleet) next(sets []daemonSet, nodes []node) {
	legion, dir := shorten(f.program("legion")), shorten(f.Dir)
	fmt.Fprintf(f.Out, "kubeconfig: %s\n\nTry next:\n", f.Kubeconfig())
	if len(nodes) == 0 || len(f.state.Nodes) == 0 {
		fmt.Fprintf(f.Out, "  %s nodes add n1 --dir %s\n", legion, dir)
		fmt.Fprintf(f.Out, "  %s kubectl --dir %s get nodes\n", legion, dir)
		fmt.Fprintf(f.Out, "  %s status -H %s/host.sock\n", legion, dir)
		return
	}
	first := f.state.Nodes[0]
	fmt.Fprintf(f.Out, "  %s kubectl --dir %s get ds,pods,nodes -A\n", legion, dir)
	if slices.ContainsFunc(sets, func(d daemonSet) bool { return d.Metadata.Name == "exporter" }) {
		fmt.Fprintf(f.Out, "  curl -s http://%s:9100/metrics | head\n", f.nodeAddr(first))
	} else {
		fmt.Fprintf(f.Out, "  %s nodes --dir %s\n", legion, dir)
	}
	fmt.Fprintf(f.Out, "  %s status -H %s/nodes/%s/host.sock\n", legion, dir, first.Name)
}

// shorten makes a path relative to the current directory if it is below it.
func shorten(path string) string {
	cwd, err := os.Getwd()
	if err != nil {
		return path
	}
	rel, err := filepath.Rel(cwd, path)
	if err != nil || strings.HasPrefix(rel, "..") {
		return path
	}
	return rel
}
