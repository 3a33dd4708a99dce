package agent

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// serveResourceMetrics is the kubelet's /metrics/resource, which metrics-server
// reads (pkg/kubelet/metrics/collectors/resource_metrics.go).
func (k *kubelet) serveResourceMetrics(w http.ResponseWriter, r *http.Request) {
	s, err := k.stats(r.Context())
	if err != nil {
		http.Error(w, "cannot read what the node uses: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	writeResourceMetrics(w, s) // the reader may be gone
}

// series are the samples of one metric.
type series struct {
	name, help, kind string
	samples          []string
}

func (s *series) add(labels string, value float64, at time.Time) {
	if !at.IsZero() {
		labels += " " + strconv.FormatFloat(value, 'g', -1, 64) + " " + strconv.FormatInt(at.UnixMilli(), 10)
		s.samples = append(s.samples, labels)
	}
}

// use adds what is used under the labels to a counter and a gauge.
func use(cpu, memory *series, labels string, c *statsapi.CPUStats, m *statsapi.MemoryStats) {
	if c != nil && c.UsageCoreNanoSeconds != nil {
		cpu.add(labels, float64(*c.UsageCoreNanoSeconds)/1e9, c.Time.Time)
	}
	if m != nil && m.WorkingSetBytes != nil {
		memory.add(labels, float64(*m.WorkingSetBytes), m.Time.Time)
	}
}

func writeResourceMetrics(w io.Writer, s *statsapi.Summary) {
	node := series{"node_cpu_usage_seconds_total", "processor time that the node has used", "counter", nil}
	nodeMemory := series{"node_memory_working_set_bytes", "memory that the node uses", "gauge", nil}
	cpu := series{"container_cpu_usage_seconds_total", "processor time that the container has used", "counter", nil}
	memory := series{"container_memory_working_set_bytes", "memory that the container uses", "gauge", nil}
	started := series{"container_start_time_seconds", "when the container was started, since 1970", "gauge", nil}
	use(&node, &nodeMemory, "", s.Node.CPU, s.Node.Memory)
	for _, p := range s.Pods {
		for _, c := range p.Containers {
			labels := fmt.Sprintf("{container=%q,namespace=%q,pod=%q}", c.Name, p.PodRef.Namespace, p.PodRef.Name)
			use(&cpu, &memory, labels, c.CPU, c.Memory)
			if c.CPU != nil {
				started.add(labels, float64(c.StartTime.UnixNano())/1e9, c.CPU.Time.Time)
			}
		}
	}
	failed := series{"resource_scrape_error", "1 if what is used could not be read", "gauge", []string{" 0"}}
	for _, m := range []series{node, nodeMemory, cpu, memory, started, failed} {
		if len(m.samples) > 0 {
			fmt.Fprintf(w, "# HELP %[1]s %[2]s\n# TYPE %[1]s %[3]s\n", m.name, m.help, m.kind)
		}
		for _, sample := range m.samples {
			fmt.Fprintln(w, m.name+sample)
		}
	}
}
