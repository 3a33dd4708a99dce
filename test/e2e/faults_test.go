package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubectl/pkg/util/podutils"

	"legion.dev/legion/internal/hostapi"
)

// pidsByNode are the main processes of an app's pods.
func (f *fleet) pidsByNode(t *testing.T, app string) map[string]int {
	t.Helper()
	pids := map[string]int{}
	for node, p := range f.pods(t, app) {
		pids[node] = mainRun(t, f.groupOf(t, p)).PID
	}
	return pids
}

// restartUnit kills the main process of one of the fleet's own units and waits
// until a successor runs and has said that it is ready.
func (f *fleet) killUnit(t *testing.T, unit string) {
	t.Helper()
	g, err := f.host("").Group(t.Context(), unit)
	if err != nil {
		t.Fatal(err)
	}
	before := mainRun(t, g)
	kill9(t, before.PID)
	untilGroup(t, f.host(""), unit, 30*time.Second, "ready again", func(g *hostapi.Group) bool {
		s := g.Status.Services[0]
		return s.Main != nil && s.Main.Number > before.Number && s.Main.Exit == nil && s.Ready
	})
}

func TestProgramsDieAndDaemonsLive(t *testing.T) {
	f := shareFleet(t)
	argv := []string{"sleep", "86411"}
	f.deploy(t, "steady", daemonSet("steady", argv...))
	want := f.pidsByNode(t, "steady")
	if len(want) != 3 {
		t.Fatalf("want pods on 3 nodes, got %v", want)
	}
	restarts := func() (n int32) {
		for _, p := range f.pods(t, "steady") {
			n += p.Status.ContainerStatuses[0].RestartCount
		}
		return n
	}
	for _, unit := range []string{"legion-agent-n1.service", "legion-server.service", "legiond-n1.service"} {
		t.Run(unit, func(t *testing.T) {
			f.killUnit(t, unit)
			f.untilPods(t, "steady", 30*time.Second, "all pods ready", func(pods map[string]*corev1.Pod) bool {
				for _, p := range pods {
					if !podutils.IsPodReady(p) {
						return false
					}
				}
				return len(pods) == 3
			})
			if got := f.pidsByNode(t, "steady"); !maps.Equal(got, want) {
				t.Errorf("pids changed: %v, were %v", got, want)
			}
			if all := pidsOf(argv...); !slices.Equal(all, slices.Sorted(maps.Values(want))) {
				t.Errorf("processes %v, want just %v", all, want)
			}
			if n := restarts(); n != 0 {
				t.Errorf("%d restarts, want none", n)
			}
		})
	}
	t.Run("supervised again", func(t *testing.T) {
		// The adopted daemon's end is seen, and a successor runs.
		pod := f.pods(t, "steady")["n1"]
		kill9(t, want["n1"])
		f.untilPods(t, "steady", 10*time.Second, "one restart on n1", func(pods map[string]*corev1.Pod) bool {
			p := pods[pod.Name]
			return p != nil && p.Status.ContainerStatuses[0].RestartCount == 1 && podutils.IsPodReady(p)
		})
		if all := pidsOf(argv...); len(all) != 3 {
			t.Errorf("processes %v, want three", all)
		}
	})
}

func TestNodeRebootsWithoutServer(t *testing.T) {
	f := shareFleet(t)
	argv := []string{"sleep", "86412"}
	f.deploy(t, "reboot", daemonSet("reboot", argv...))
	before := f.pods(t, "reboot")
	oldPID := f.pidsByNode(t, "reboot")["n3"]

	h := "-H" + f.socket("")
	mustRun(t, time.Minute, "legion", "stop", h, "legion-server.service")
	mustRun(t, time.Minute, "legion", "stop", h, "legion-agent-n3.service")
	mustRun(t, time.Minute, "legion", "stop", h, "legiond-n3.service")
	if alive(oldPID) {
		t.Fatalf("the daemon of n3 (pid %d) outlived its legiond's ordered stop", oldPID)
	}
	if all := pidsOf(argv...); len(all) != 2 {
		t.Fatalf("processes %v, want those of the two other nodes", all)
	}

	mustRun(t, time.Minute, "legion", "start", h, "legiond-n3.service")
	untilGroup(t, f.host("n3"), "pod-"+string(before["n3"].UID), 10*time.Second, "running from disk", func(g *hostapi.Group) bool {
		m := g.Status.Services[0].Main
		return m != nil && m.Exit == nil && g.Status.Services[0].Ready
	})
	if all := pidsOf(argv...); len(all) != 3 {
		t.Fatalf("processes %v, want three before the server is back", all)
	}
	mustRun(t, time.Minute, "legion", "start", h, "legion-agent-n3.service", "legion-server.service")
	f.untilPods(t, "reboot", 60*time.Second, "the same pods, ready", func(pods map[string]*corev1.Pod) bool {
		for _, p := range pods {
			if !podutils.IsPodReady(p) || p.UID != before[p.Spec.NodeName].UID {
				return false
			}
		}
		return len(pods) == 3
	})
	if all := pidsOf(argv...); len(all) != 3 {
		t.Errorf("processes %v, want three", all)
	}
}

// alive says whether a process runs (a zombie does not).
func alive(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", itoa(pid), "stat"))
	if err != nil {
		return false
	}
	i := slices.Index(stat, ')')
	return i > 0 && i+2 < len(stat) && stat[i+2] != 'Z'
}
