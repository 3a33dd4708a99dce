package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"legion.dev/legion/internal/cgroup"
	"legion.dev/legion/internal/ocispec"
)

// A rate is taken over what has passed since the sample before, if that is in
// these bounds. The first who asks waits for the shorter one; an agent that
// nobody asks samples nothing.
const (
	shortestWindow = time.Second
	longestWindow  = 2 * time.Minute
)

// counters are what a node and its containers have used at one time.
type counters struct {
	at   time.Time
	node cgroup.Usage
	pods []podCounters
}

type podCounters struct {
	ref        statsapi.PodReference
	started    time.Time
	containers []containerCounters
}

type containerCounters struct {
	name    string
	run     uint64
	started time.Time
	usage   cgroup.Usage
}

// sampler makes rates of counters.
type sampler struct {
	node string
	read func(ctx context.Context) (counters, error)

	mu sync.Mutex
	// before is the sample that the next rate counts from; last the newest
	// answer, and when it was made.
	before counters
	last   *statsapi.Summary
	lastAt time.Time
}

// Summary gives what the node and its containers use.
func (s *sampler) Summary(ctx context.Context) (*statsapi.Summary, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && time.Since(s.lastAt) < shortestWindow {
		return s.last, nil
	}
	now, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	if window := now.at.Sub(s.before.at); window < shortestWindow || window > longestWindow {
		s.before = now
		select {
		case <-time.After(shortestWindow):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if now, err = s.read(ctx); err != nil {
			return nil, err
		}
	}
	s.last, s.lastAt = summary(s.node, s.before, now), time.Now()
	s.before = now
	return s.last, nil
}

// summary is now's usage, at the rates since before.
func summary(node string, before, now counters) *statsapi.Summary {
	window := now.at.Sub(before.at)
	out := &statsapi.Summary{Node: statsapi.NodeStats{
		NodeName: node, StartTime: metav1.NewTime(before.at),
		CPU: cpuStats(now.at, window, &before.node, now.node), Memory: memoryStats(now.at, now.node),
	}}
	type key struct {
		uid, name string
		run       uint64
	}
	old := map[key]*cgroup.Usage{}
	for _, p := range before.pods {
		for _, c := range p.containers {
			old[key{p.ref.UID, c.name, c.run}] = &c.usage
		}
	}
	for _, p := range now.pods {
		pod := statsapi.PodStats{PodRef: p.ref, StartTime: metav1.NewTime(p.started)}
		for _, c := range p.containers {
			was, since := old[key{p.ref.UID, c.name, c.run}], window
			if was == nil {
				// It has begun since: its average is over its own life.
				since = now.at.Sub(c.started)
			}
			pod.Containers = append(pod.Containers, statsapi.ContainerStats{
				Name: c.name, StartTime: metav1.NewTime(c.started),
				CPU: cpuStats(now.at, since, was, c.usage), Memory: memoryStats(now.at, c.usage),
			})
		}
		out.Pods = append(out.Pods, pod)
	}
	return out
}

func cpuStats(at time.Time, window time.Duration, was *cgroup.Usage, is cgroup.Usage) *statsapi.CPUStats {
	used := is.CPU
	if was != nil {
		used -= was.CPU
	}
	rate, total := uint64(0), uint64(max(0, is.CPU))
	if used > 0 && window > 0 {
		rate = uint64(float64(used) / window.Seconds())
	}
	return &statsapi.CPUStats{Time: metav1.NewTime(at), UsageNanoCores: &rate, UsageCoreNanoSeconds: &total}
}

func memoryStats(at time.Time, is cgroup.Usage) *statsapi.MemoryStats {
	bytes := uint64(max(0, is.Memory))
	return &statsapi.MemoryStats{Time: metav1.NewTime(at), WorkingSetBytes: &bytes}
}

// counters reads what the node and its pods have used until now.
func (p *pods) counters(ctx context.Context) (counters, error) {
	type running struct {
		podCounters
		cgroups []string
		pids    []int
	}
	found, err := ask(ctx, p, func() ([]running, error) {
		var out []running
		for _, r := range p.records {
			if r.pod == nil || r.host == nil {
				continue
			}
			pod := running{podCounters: podCounters{ref: statsapi.PodReference{Name: r.pod.Name, Namespace: r.pod.Namespace, UID: string(r.uid)}, started: r.added}}
			for i := range r.host.Services {
				if s := &r.host.Services[i]; s.Name != ocispec.Holder && s.Main != nil && s.Main.Exit == nil {
					pod.containers = append(pod.containers, containerCounters{name: s.Name, run: s.Main.Number, started: s.Main.Started})
					pod.cgroups, pod.pids = append(pod.cgroups, s.Cgroup), append(pod.pids, s.Main.PID)
				}
			}
			out = append(out, pod)
		}
		return out, nil
	})
	if err != nil {
		return counters{}, err
	}
	now := counters{}
	for _, pod := range found {
		kept := pod.containers[:0]
		for i, c := range pod.containers {
			var err error
			if pod.cgroups[i] != "" {
				c.usage, err = cgroup.UsageOf(pod.cgroups[i])
			} else {
				c.usage, err = cgroup.UsageOfProcess(pod.pids[i])
			}
			if err == nil { // else it has ended meanwhile
				kept = append(kept, c)
			}
		}
		pod.containers = kept
		now.pods = append(now.pods, pod.podCounters)
	}
	now.node, err = nodeUsage("/proc")
	now.at = time.Now()
	return now, err
}

// nodeUsage is what the machine uses: all processor time but idle and waiting
// for disks, and all memory that is not available.
func nodeUsage(proc string) (cgroup.Usage, error) {
	total, available, err := readMemory(filepath.Join(proc, "meminfo"))
	if err != nil {
		return cgroup.Usage{}, err
	}
	line := readLine(filepath.Join(proc, "stat"))
	// cpu user nice system idle iowait irq softirq steal …; guests are in user.
	words := strings.Fields(line)
	if len(words) < 8 || words[0] != "cpu" {
		return cgroup.Usage{}, fmt.Errorf("cannot read the processor time: %s begins with %q", filepath.Join(proc, "stat"), line)
	}
	ticks := int64(0)
	for i, word := range words[1:8] {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return cgroup.Usage{}, fmt.Errorf("cannot read the processor time: %w", err)
		}
		if idle := i == 3 || i == 4; !idle {
			ticks += n
		}
	}
	return cgroup.Usage{CPU: time.Duration(ticks) * cgroup.Tick, Memory: total - available}, nil
}

// serveSummary is the kubelet's /stats/summary, as far as it is known.
func (k *kubelet) serveSummary(w http.ResponseWriter, r *http.Request) {
	s, err := k.stats(r.Context())
	if err != nil {
		http.Error(w, "cannot read what the node uses: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s) // the server may be gone
}
