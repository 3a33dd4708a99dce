package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/test/sim"
)

// What an agent may take with ten pods while nothing happens to them.
const (
	agentResident  = 30e6 // bytes
	agentProcessor = 0.01 // of one
)

// TestAgentInAFleet: an agent among many nodes costs the server one watch and
// its Lease, and itself no more than alone. LEGION_FLEET is how many there are
// besides, LEGION_FLEET_IDLE for how many seconds they are looked at.
func TestAgentInAFleet(t *testing.T) {
	needRoot(t)
	count, idle := number(t, "LEGION_FLEET", 200), time.Duration(number(t, "LEGION_FLEET_IDLE", 20))*time.Second
	f := &fleet{dir: t.TempDir()}
	t.Cleanup(func() { mustRun(t, 2*time.Minute, "legion", "down", "--dir", f.dir) })
	mustRun(t, 3*time.Minute, "legion", "up", "--dir", f.dir, "--nodes", "1", "--port", "0")
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(f.dir, "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	if f.client, err = clientFor(f.dir); err != nil {
		t.Fatal(err)
	}
	life, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	others, err := sim.Start(life, sim.Config{REST: config, Nodes: count})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(); others.Wait() })
	// Ten pods: nine and that of the DaemonSet, which is on all nodes.
	f.apply(t, daemonSet("everywhere", "sleep", "86415"))
	for i := range 9 {
		f.apply(t, podOn("n1", fmt.Sprintf("alone-%d", i)))
	}
	f.kubectl(t, "rollout", "status", "ds/everywhere", "--timeout=5m")
	f.kubectl(t, "wait", "pod", "-lapp=alone", "--for=condition=Ready", "--timeout=1m")
	g, err := f.host("").Group(t.Context(), "legion-agent-n1.service")
	if err != nil {
		t.Fatal(err)
	}
	pid := mainRun(t, g).PID

	time.Sleep(idle / 2) // what the start has used is given back
	before, leases, used := f.requests(t), f.renewals(t, "n1", idle), processorTime(t, pid)
	time.Sleep(idle) // what happens in so long is what is measured
	share := (processorTime(t, pid) - used).Seconds() / idle.Seconds()
	memory := residentBytes(t, pid)
	asked := difference(before, f.requests(t))
	t.Logf("%d nodes, %s: the agent of one takes %.1f MB and %.3f %% of a processor, renewed its Lease %d times; all other requests to the server: %v",
		count+1, idle, float64(memory)/1e6, 100*share, <-leases, asked)
	if float64(memory) > agentResident || share > agentProcessor {
		t.Errorf("the agent takes %d bytes, at most %.0f are to be, and %.4f of a processor, at most %.4f", memory, agentResident, share, agentProcessor)
	}

	// Besides Leases, which all renew: what the server and this test ask themselves
	// is among it.
	if most := 10 * max(1, int(idle/(20*time.Second))); total(asked) > most {
		t.Errorf("%d requests in %s, want at most %d", total(asked), idle, most)
	}

	with := f.watches(t)
	mustRun(t, time.Minute, "legion", "stop", "-H"+f.socket(""), "legion-agent-n1.service")
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		held := difference(f.watches(t), with)
		if len(held) == 1 && held["WATCH pods"] == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the agent held open %v, want one watch, of its pods", held)
		}
	}
}

// podOn is a pod of the node.
func podOn(node, name string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: {app: alone}}
spec:
  nodeName: %s
  runtimeClassName: host
  terminationGracePeriodSeconds: 2
  automountServiceAccountToken: false
  containers: [{name: main, image: host, command: [sleep, "86416"]}]
`, name, node)
}

// counted is a line of the server's metrics that counts requests or watches.
var counted = regexp.MustCompile(`(?m)^apiserver_(request_total|longrunning_requests)\{(.*)\} (\S+)$`)

// count adds up a metric of the server by verb and resource.
func (f *fleet) count(t *testing.T, name string, of func(verb, resource string) bool) map[string]int {
	t.Helper()
	text, err := f.client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	label := func(labels, name string) string {
		_, rest, _ := strings.Cut(labels, name+"=\"")
		value, _, _ := strings.Cut(rest, "\"")
		return value
	}
	sum := map[string]int{}
	for _, m := range counted.FindAllStringSubmatch(string(text), -1) {
		verb, resource := label(m[2], "verb"), label(m[2], "resource")
		if m[1] == name && of(verb, resource) {
			n, err := strconv.ParseFloat(m[3], 64)
			if err != nil {
				t.Fatal(err)
			}
			sum[verb+" "+resource] += int(n)
		}
	}
	return sum
}

// requests are those that the server has answered, but for watches and Leases.
func (f *fleet) requests(t *testing.T) map[string]int {
	return f.count(t, "request_total", func(verb, resource string) bool { return resource != "leases" && verb != "WATCH" })
}

// watches are those that are open.
func (f *fleet) watches(t *testing.T) map[string]int {
	return f.count(t, "longrunning_requests", func(verb, _ string) bool { return verb == "WATCH" })
}

// difference is what there is more of.
func difference(before, after map[string]int) map[string]int {
	more := map[string]int{}
	for name, n := range after {
		if n > before[name] {
			more[name] = n - before[name]
		}
	}
	return more
}

func total(counts map[string]int) (sum int) {
	for n := range maps.Values(counts) {
		sum += n
	}
	return sum
}

// renewals counts for so long how often a node renews its Lease.
func (f *fleet) renewals(t *testing.T, node string, d time.Duration) <-chan int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	w, err := f.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, node).String(),
	})
	if err != nil {
		t.Fatal(err)
	}
	n := make(chan int, 1)
	go func() {
		defer cancel()
		renewed := 0
		for e := range w.ResultChan() {
			if e.Type == watch.Modified {
				renewed++
			}
		}
		n <- renewed
	}()
	return n
}

// residentBytes is a process's resident memory.
func residentBytes(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(data))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// processorTime is what the threads of a process have used.
func processorTime(t *testing.T, pid int) (sum time.Duration) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("process %d has no schedstat: %v", pid, err)
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		ns, err := strconv.ParseInt(strings.Fields(string(data))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}
