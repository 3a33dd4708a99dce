package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
)

// nodeTimeout bounds the wait for one node to come or go.
const nodeTimeout = 2 * time.Minute

// changeRunning opens a fleet that runs, for a command that changes it.
func (f *Fleet) changeRunning(ctx context.Context, verb string) (func(), error) {
	if !f.exists() {
		return nil, fmt.Errorf("there is no fleet in %s; `legion up --dir %[1]s` starts one", f.Dir)
	}
	unlock, err := f.lock(verb)
	if err != nil {
		return nil, err
	}
	if err := f.open(); err != nil {
		unlock()
		return nil, err
	}
	if !f.hostAnswers(ctx) {
		unlock()
		return nil, fmt.Errorf("the fleet in %s is not running; `legion up --dir %[1]s` starts it", f.Dir)
	}
	return unlock, nil
}

// AddNode adds a local node and returns when it is Ready. That it exists already
// is no error: it is started if it does not run.
func (f *Fleet) AddNode(ctx context.Context, name string) error {
	unlock, err := f.changeRunning(ctx, "nodes add")
	if err != nil {
		return err
	}
	defer unlock()
	if err := f.programsPresent(true); err != nil {
		return err
	}
	n, ok := f.node(name)
	if !ok {
		if n, err = f.addNode(name); err != nil {
			return err
		}
	}
	if err := f.makeNetwork(); err != nil {
		return err
	}
	if err := f.save(); err != nil {
		return err
	}
	if err := f.writeUnits(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, nodeTimeout, fmt.Errorf("not within %s", nodeTimeout))
	defer cancel()
	f.Progress.Step("starting node %s", name)
	if err := f.reload(ctx); err != nil {
		return err
	}
	if err := f.start(ctx, []string{hostUnit(name)}); err != nil {
		return err
	}
	client, err := openAPI(f.Kubeconfig())
	if err != nil {
		return err
	}
	if err := f.joinNodes(ctx, client, []Node{n}); err != nil {
		return err
	}
	f.Progress.Say("Node %s (%s) is Ready (%s).", name, f.nodeAddr(n), f.Progress.Elapsed())
	return nil
}

// RemoveNode stops a local node and its daemons, takes it and its pods out of
// the API, and removes its directory.
func (f *Fleet) RemoveNode(ctx context.Context, name string) error {
	unlock, err := f.changeRunning(ctx, "nodes remove")
	if err != nil {
		return err
	}
	defer unlock()
	n, ok := f.node(name)
	if !ok {
		return fmt.Errorf("cannot remove node %s: the fleet in %s has no such local node; `legion nodes --dir %[2]s` lists them", name, f.Dir)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, nodeTimeout, fmt.Errorf("not within %s", nodeTimeout))
	defer cancel()
	client, err := openAPI(f.Kubeconfig())
	if err != nil {
		return err
	}
	// The agent first, or it would see its pods end and say so, or register
	// the node again. Then the node's daemons, in order; then the API may
	// forget the pods, for nothing of them runs.
	f.Progress.Step("stopping the daemons of node %s", name)
	host := hostclient.New(f.socket())
	for _, unit := range []string{agentUnit(name), hostUnit(name)} {
		if _, err := host.Do(ctx, unit, "stop", true); err != nil && !notFound(err) {
			return fmt.Errorf("cannot stop %s: %w", unit, err)
		}
	}
	f.Progress.Step("removing node %s from the API", name)
	if err := client.delete(ctx, "/api/v1/nodes/"+name, nil); err != nil {
		return err
	}
	if err := f.forgetPods(ctx, client, name); err != nil {
		return err
	}
	f.state.Nodes = slices.DeleteFunc(f.state.Nodes, func(o Node) bool { return o.Name == name })
	if err := f.save(); err != nil {
		return err
	}
	if err := f.writeUnits(); err != nil {
		return err
	}
	if err := f.reload(ctx); err != nil {
		return err
	}
	if f.state.Namespaced {
		if err := f.network().RemoveNode(n.Name); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(f.path("nodes", name)); err != nil {
		return fmt.Errorf("cannot remove the files of node %s: %w", name, err)
	}
	f.Progress.Say("Node %s is removed (%s).", name, f.Progress.Elapsed())
	return nil
}

// notFound: the host has nothing of that name.
func notFound(err error) bool {
	var e *hostapi.Error
	return errors.As(err, &e) && e.Code == "not-found"
}

// forgetPods removes the pods of a node that is gone and waits until the API
// has none.
func (f *Fleet) forgetPods(ctx context.Context, client *api, name string) error {
	now := 0
	path := "/api/v1/pods?fieldSelector=spec.nodeName%3D" + name
	var errs []error
	err := follow(ctx, client, path, func(p *pod) metadata { return p.Metadata }, func(have map[string]*pod) bool {
		errs = nil
		for _, p := range have {
			errs = append(errs, client.delete(ctx, "/api/v1/namespaces/"+p.Metadata.Namespace+"/pods/"+p.Metadata.Name, &now))
		}
		return len(have) == 0
	})
	if err != nil {
		return fmt.Errorf("the pods of node %s are not gone from the API: %w", name, errors.Join(append(errs, err)...))
	}
	return nil
}

// ListNodes prints the local nodes.
func (f *Fleet) ListNodes(ctx context.Context) error {
	if !f.exists() {
		return fmt.Errorf("there is no fleet in %s; `legion up --dir %[1]s` starts one", f.Dir)
	}
	if err := f.open(); err != nil {
		return err
	}
	states := map[string]string{}
	client, err := openAPI(f.Kubeconfig())
	if err == nil {
		asked, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		var nodes list[node]
		if nodes, err = get[list[node]](asked, client, "/api/v1/nodes"); err == nil {
			for _, n := range nodes.Items {
				states[n.Metadata.Name] = "NotReady"
				if isTrue(n.Status.Conditions, "Ready") {
					states[n.Metadata.Name] = "Ready"
				}
			}
		}
	}
	w := tabwriter.NewWriter(f.Out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NODE\tSTATE\tADDRESS\tSOCKET")
	for _, n := range f.state.Nodes {
		state := states[n.Name]
		switch {
		case err != nil:
			state = "unknown"
		case state == "":
			state = "not joined"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", n.Name, state, f.nodeAddr(n), f.path("nodes", n.Name, "host.sock"))
	}
	if e := w.Flush(); e != nil {
		return e
	}
	if err != nil {
		f.Progress.Say("The states are unknown: %v", err)
	}
	return nil
}
