package e2e

import (
	"strings"
	"testing"

	"legion.dev/legion/internal/hostapi"
)

// TestNoMorePids: a daemon dies while its host can fork no more. The host says
// what is missing, and starts it once it can.
func TestNoMorePids(t *testing.T) {
	needRoot(t)
	r := startRounds(t, 1)
	const node = "n1"
	was := r.seen[node]
	mend := exhaustPids(r, node)
	kill9(t, was.pid)
	untilGroup(t, r.host(node), "pod-"+was.pod, patience, "told why it does not start", func(g *hostapi.Group) bool {
		return strings.Contains(g.Status.Services[0].Reason, "the limit on processes is reached")
	})
	mend()
	r.settled(expectations{node: func(d daemon) string {
		if d.pod != was.pod || d.restarts <= was.restarts {
			return "its daemon was not started again"
		}
		return ""
	}})
	r.tidy()
}
