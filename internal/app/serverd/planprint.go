package serverd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/client-go/kubernetes"

	"legion.dev/legion/internal/daemonset"
)

// plan is what legion plan says of one DaemonSet; in JSON it is this.
type plan struct {
	DaemonSet      string     `json:"daemonSet"`
	Revision       string     `json:"revision"`
	Rollout        string     `json:"rollout"`
	MaxUnavailable int        `json:"maxUnavailable"`
	MaxSurge       int        `json:"maxSurge"`
	Now            string     `json:"now"`
	Nodes          []planNode `json:"nodes"`
	Steps          []planStep `json:"steps"`
	Then           string     `json:"then"`
}

type planNode struct {
	Name     string `json:"name"`
	Eligible bool   `json:"eligible"`
	// Reason says why the node is not eligible.
	Reason   string `json:"reason,omitempty"`
	Group    string `json:"group,omitempty"`
	Revision string `json:"revision,omitempty"`
	Pod      string `json:"pod,omitempty"`
	State    string `json:"state"`
}

type planStep struct {
	Group   string       `json:"group,omitempty"`
	Wait    string       `json:"wait,omitempty"`
	Actions []planAction `json:"actions,omitempty"`
}

type planAction struct {
	Node   string          `json:"node"`
	Do     string          `json:"do"`
	Pod    string          `json:"pod,omitempty"`
	Cause  daemonset.Cause `json:"cause"`
	Reason string          `json:"reason"`
}

func printPlans(ctx context.Context, w io.Writer, client kubernetes.Interface, sets []*appsv1.DaemonSet, output string) error {
	var plans []plan
	for _, ds := range sets {
		s, err := gather(ctx, client, ds)
		if err != nil {
			return fmt.Errorf("cannot plan ds/%s in namespace %s: %w", ds.Name, ds.Namespace, err)
		}
		plans = append(plans, s.plan(time.Now()))
	}
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		if len(plans) == 1 {
			return e.Encode(plans[0])
		}
		return e.Encode(plans)
	}
	for i, p := range plans {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := p.print(w); err != nil {
			return err
		}
	}
	return nil
}

func (s *fleetState) plan(now time.Time) plan {
	f := s.fleet(now)
	options, wrong := s.policy.Options()
	before := s.ds.Status.Conditions
	p := plan{
		DaemonSet: s.ds.Namespace + "/" + s.ds.Name, Revision: s.hash, Rollout: options.String(),
		Now: f.Report(before, now).Progressing.Message, Nodes: []planNode{}, Steps: []planStep{},
	}
	if s.ds.UID == "" {
		p.Now = fmt.Sprintf("it is not there; %d of %d nodes are eligible", f.Tally().Desired, len(s.nodes))
	}
	if !s.policy.Rolling() {
		p.Rollout = "pods are replaced when they are deleted (OnDelete)"
	}
	if len(wrong) > 0 {
		p.Rollout = "halted by annotations that are wrong"
	}
	p.MaxUnavailable, p.MaxSurge = s.policy.Budget(f.Tally().Desired)
	for _, n := range s.nodes {
		p.Nodes = append(p.Nodes, s.planNode(f, n))
	}
	forecast := s.policy.Forecast(s.nodes, before, s.since, now)
	p.Then = forecast.End
	for _, step := range forecast.Steps {
		ps := planStep{Group: step.Wave}
		if step.Bake > 0 {
			ps.Wait = step.Bake.String()
		}
		for _, a := range step.Actions {
			do := "delete"
			if a.Create() {
				do = "create"
			}
			ps.Actions = append(ps.Actions, planAction{a.Node, do, a.Pod, a.Cause, a.Reason})
		}
		p.Steps = append(p.Steps, ps)
	}
	return p
}

func (s *fleetState) planNode(f *daemonset.Fleet, n daemonset.Node) planNode {
	v, _ := f.Verdict(n.Name)
	pn := planNode{Name: n.Name, Eligible: n.Run, Reason: n.Reason, Group: s.policy.WaveName(n.Wave), State: "no pod"}
	if len(n.Pods) > 0 {
		o := n.Pods[0]
		pn.Revision, pn.Pod = o.Hash, o.Name
		switch {
		case o.Deleting:
			pn.State = "being deleted"
		case v.Share.Available == 1 || o.Ready:
			pn.State = "ready"
		case v.Trouble == "":
			pn.State = "starting"
		}
	}
	if v.Trouble != "" {
		pn.State = v.Trouble
	}
	if n.Unfit != "" {
		pn.State = "no pod fits: " + n.Unfit
	}
	return pn
}

func (p *plan) print(w io.Writer) error {
	fmt.Fprintf(w, "daemonset %s, revision %s\n", p.DaemonSet, p.Revision)
	budget := fmt.Sprintf("at most %d unavailable", p.MaxUnavailable)
	if p.MaxSurge > 0 {
		budget = fmt.Sprintf("at most %d with two pods", p.MaxSurge)
	}
	fmt.Fprintf(w, "rollout: %s, %s\nnow: %s\n\n", p.Rollout, budget, p.Now)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tELIGIBLE\tGROUP\tREVISION\tPOD")
	for _, n := range p.Nodes {
		eligible := "yes"
		if !n.Eligible {
			eligible = "no: " + n.Reason
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", n.Name, eligible, dash(n.Group), dash(n.Revision), n.State)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for i, s := range p.Steps {
		group := ""
		if s.Group != "" {
			group = s.Group + ": "
		}
		if s.Wait != "" {
			fmt.Fprintf(w, "%3d. %swait %s\n", i+1, group, s.Wait)
			continue
		}
		var lines []string
		for _, a := range s.Actions {
			what := a.Do + " a pod"
			if a.Pod != "" {
				what = a.Do + " pod " + a.Pod
			}
			lines = append(lines, fmt.Sprintf("%s on %s: %s", what, a.Node, a.Reason))
		}
		fmt.Fprintf(w, "%3d. %s%s\n", i+1, group, strings.Join(lines, "\n     "))
	}
	if len(p.Steps) == 0 {
		fmt.Fprintln(w, "nothing is to be done")
	}
	_, err := fmt.Fprintf(w, "then: %s\n", p.Then)
	return err
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
