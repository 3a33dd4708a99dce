package agent

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"legion.dev/legion/internal/cgroup"
)

// TestSampler: the first who asks waits a second; who asks soon after gets the
// same; later a rate is of all that has passed since, but not of an age.
func TestSampler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		reads := 0
		s := &sampler{node: "n1", read: func(context.Context) (counters, error) {
			reads++
			// Half a processor for the first minute, then none.
			busy := min(time.Since(begun), time.Minute) / 2
			return counters{
				at: time.Now(), node: cgroup.Usage{CPU: 2 * busy, Memory: 5 << 30},
				pods: []podCounters{{ref: statsapi.PodReference{Name: "web", UID: "u"}, containers: []containerCounters{
					{name: "c", run: 1, started: begun, usage: cgroup.Usage{CPU: busy, Memory: 7 << 20}},
				}}},
			}, nil
		}}
		ask := func(wantNode, wantPod uint64, wantReads int) {
			t.Helper()
			got, err := s.Summary(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c := got.Pods[0].Containers[0]
			if *got.Node.CPU.UsageNanoCores != wantNode || *c.CPU.UsageNanoCores != wantPod || *c.Memory.WorkingSetBytes != 7<<20 || reads != wantReads {
				t.Errorf("node %d, container %d, memory %d after %d reads; want %d, %d after %d", *got.Node.CPU.UsageNanoCores, *c.CPU.UsageNanoCores, *c.Memory.WorkingSetBytes, reads, wantNode, wantPod, wantReads)
			}
		}
		ask(1e9, 5e8, 2)
		if waited := time.Since(begun); waited != shortestWindow {
			t.Errorf("the first answer took %s", waited)
		}
		ask(1e9, 5e8, 2)
		time.Sleep(time.Until(begun.Add(119 * time.Second))) // 59 of 118 s were busy
		ask(5e8, 25e7, 3)
		time.Sleep(10 * time.Minute)
		ask(0, 0, 5)
	})
}

// TestSummary: what has started since the sample before is averaged over its own
// life, and a new run is no run of before.
func TestSummary(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	one := func(run uint64, started time.Time, cpu time.Duration) []podCounters {
		return []podCounters{{ref: statsapi.PodReference{UID: "u"}, containers: []containerCounters{{name: "c", run: run, started: started, usage: cgroup.Usage{CPU: cpu}}}}}
	}
	before := counters{at: at, pods: one(1, at.Add(-time.Hour), time.Hour)}
	now := counters{at: at.Add(10 * time.Second), pods: one(2, at.Add(6*time.Second), time.Second)}
	got := summary("n1", before, now)
	if rate := *got.Pods[0].Containers[0].CPU.UsageNanoCores; rate != 25e7 {
		t.Errorf("one second of four is %d nanocores", rate)
	}
	now.pods = one(1, at.Add(-time.Hour), time.Hour-time.Second)
	if rate := *summary("n1", before, now).Pods[0].Containers[0].CPU.UsageNanoCores; rate != 0 {
		t.Errorf("a clock that went back gives %d nanocores", rate)
	}
	failing := &sampler{read: func(context.Context) (counters, error) { return counters{}, errors.New("no /proc") }}
	if _, err := failing.Summary(t.Context()); err == nil {
		t.Error("no error")
	}
}

// TestResourceMetrics: what metrics-server reads, a line each.
func TestResourceMetrics(t *testing.T) {
	at := time.UnixMilli(1_900_000_000_500)
	now := counters{at: at, node: cgroup.Usage{CPU: 90 * time.Second, Memory: 5 << 30}, pods: []podCounters{{
		ref:        statsapi.PodReference{UID: "u", Name: "web", Namespace: "shop"},
		containers: []containerCounters{{name: "c", run: 1, started: at.Add(-time.Minute), usage: cgroup.Usage{CPU: 1500 * time.Millisecond, Memory: 7 << 20}}},
	}}}
	k := &kubelet{stats: func(context.Context) (*statsapi.Summary, error) { return summary("n1", now, now), nil }}
	w := httptest.NewRecorder()
	k.handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics/resource", nil))
	const of = `{container="c",namespace="shop",pod="web"}`
	for _, want := range []string{
		"# TYPE node_cpu_usage_seconds_total counter",
		"node_cpu_usage_seconds_total 90 1900000000500",
		"node_memory_working_set_bytes 5.36870912e+09 1900000000500",
		"container_cpu_usage_seconds_total" + of + " 1.5 1900000000500",
		"container_memory_working_set_bytes" + of + " 7.340032e+06 1900000000500",
		"container_start_time_seconds" + of + " 1.8999999405e+09 1900000000500",
		"resource_scrape_error 0",
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, w.Body)
		}
	}
	broken := &kubelet{stats: func(context.Context) (*statsapi.Summary, error) { return nil, errors.New("no /proc") }}
	w = httptest.NewRecorder()
	broken.handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics/resource", nil))
	if w.Code != 500 {
		t.Errorf("unreadable: %d", w.Code)
	}
}

func TestNodeUsage(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
	write("stat", "cpu  100 10 20 5000 600 3 4 5 99 99\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	got, err := nodeUsage(dir)
	if err != nil || got.Memory != 600<<10 || got.CPU != 1370*time.Millisecond {
		t.Errorf("%+v, %v", got, err)
	}
	write("stat", "nothing\n")
	if _, err := nodeUsage(dir); err == nil {
		t.Error("no error")
	}
}
