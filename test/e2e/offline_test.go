package e2e

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/test/cable"
)

// TestOfflineNode cuts a node off until the server has given it up, lets daemons
// and programs die on it, has it start anew, and deletes its pod on the server.
// When it is back, what ran runs on, what was deleted ends, and nothing is there
// twice.
func TestOfflineNode(t *testing.T) {
	needRoot(t)
	r := startRounds(t, 1)
	const node = "n2"
	was := r.seen[node]

	r.cables[node].Set(cable.State{Cut: true})
	kill9(t, was.pid)
	untilGroup(t, r.host(node), "pod-"+was.pod, patience, "a new run without the server", func(g *hostapi.Group) bool {
		m := g.Status.Services[0].Main
		return m != nil && m.PID != 0 && m.PID != was.pid && m.Exit == nil
	})
	pid := r.mainPID(t, node)
	r.untilNode(t, node, "given up", func(n *corev1.Node) bool { return !nodeReady(n) })
	for _, unit := range []string{"legion-agent-" + node + ".service", "legiond-" + node + ".service"} {
		r.killUnit(t, unit)
	}
	if now := r.mainPID(t, node); now != pid {
		t.Errorf("the daemon of the cut-off node has pid %d, had %d before its legiond and agent were killed", now, pid)
	}
	r.cables[node].Set(cable.State{})
	back := time.Now()
	r.untilNode(t, node, "Ready again", nodeReady)
	t.Logf("Ready %s after the cable was mended", time.Since(back).Round(time.Millisecond))
	r.settled(expectations{node: func(d daemon) string {
		if d.pod == was.pod && d.restarts == was.restarts+1 {
			return ""
		}
		return "its restart is not told yet"
	}})
	if d := r.seen[node]; d.pid != pid {
		t.Errorf("the daemon of the node that is back has pid %d, had %d", d.pid, pid)
	}

	// Deleted on the server while the node is away, and starts anew.
	was = r.seen[node]
	r.cables[node].Set(cable.State{Cut: true})
	expected := deletePod(r, fault{}, node)
	h := "-H" + r.socket("")
	mustRun(t, time.Minute, "legion", "stop", h, "legion-agent-"+node+".service", "legiond-"+node+".service")
	if alive(was.pid) {
		t.Fatalf("the daemon of %s (pid %d) outlived its legiond's ordered stop", node, was.pid)
	}
	mustRun(t, time.Minute, "legion", "start", h, "legiond-"+node+".service", "legion-agent-"+node+".service")
	untilGroup(t, r.host(node), "pod-"+was.pod, patience, "running from disk", func(g *hostapi.Group) bool {
		m := g.Status.Services[0].Main
		return m != nil && m.Exit == nil && g.Status.Services[0].Ready
	})
	r.cables[node].Set(cable.State{})
	r.settled(expected)
	r.tidy()
}

// mainPID is the daemon's process by the word of its host.
func (r *rounds) mainPID(t *testing.T, node string) int {
	t.Helper()
	g, err := r.host(node).Group(t.Context(), "pod-"+r.seen[node].pod)
	if err != nil {
		t.Fatal(err)
	}
	return mainRun(t, g).PID
}

// untilNode waits until the server says cond of a node.
func (r *rounds) untilNode(t *testing.T, name, what string, cond func(*corev1.Node) bool) {
	t.Helper()
	w, err := r.client.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for end := time.After(2 * patience); ; {
		select {
		case ev := <-w.ResultChan():
			n, ok := ev.Object.(*corev1.Node)
			if !ok {
				t.Fatalf("%s: watch: %v", name, ev)
			}
			if cond(n) {
				return
			}
		case <-end:
			t.Fatalf("%s is not %s within %s", name, what, 2*patience)
		}
	}
}
