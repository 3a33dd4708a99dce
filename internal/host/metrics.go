package host

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/vitals"
)

// activeStates are systemd's, each a series of legion_unit_state.
var activeStates = []string{"active", "reloading", "inactive", "failed", "activating", "deactivating"}

// httpMetrics answers in Prometheus' text format (version 0.0.4).
func (h *Host) httpMetrics(w http.ResponseWriter, r *http.Request) {
	info, err := h.Info(r.Context())
	var groups []hostapi.Group
	if err == nil {
		groups, err = h.Groups(r.Context())
	}
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = io.WriteString(w, metrics(info, groups)+vitals.Text()) // the client may be gone
}

// metricsText collects families in order: a family's series stand together.
type metricsText struct{ b strings.Builder }

func (m *metricsText) family(name, kind, help string) {
	fmt.Fprintf(&m.b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (m *metricsText) add(name string, value float64, labels ...string) {
	m.b.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := ","
		if i == 0 {
			sep = "{"
		}
		fmt.Fprintf(&m.b, `%s%s="%s"`, sep, labels[i], labelEscaper.Replace(labels[i+1]))
	}
	if len(labels) > 0 {
		m.b.WriteByte('}')
	}
	m.b.WriteString(" " + strconv.FormatFloat(value, 'g', -1, 64) + "\n")
}

// labelEscaper escapes what the text format does not take in a label's value.
var labelEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func metrics(info hostapi.Info, groups []hostapi.Group) string {
	var m metricsText
	m.family("legion_build_info", "gauge", "The version of legiond; always 1.")
	m.add("legion_build_info", 1, "version", info.Version)
	m.family("legion_start_time_seconds", "gauge", "When this legiond started, in Unix time.")
	m.add("legion_start_time_seconds", float64(info.StartedAt.UnixMilli())/1000)
	m.family("legion_problems", "gauge", "What an operator should know about the host: unit files that cannot be read, a full log disk.")
	m.add("legion_problems", float64(len(info.Problems)))
	m.family("legion_unit_state", "gauge", "1 for the state that the unit is in, 0 for the others.")
	for _, g := range groups {
		for _, s := range activeStates {
			v := 0.0
			if g.ActiveState == s {
				v = 1
			}
			m.add("legion_unit_state", v, "unit", g.Spec.Name, "state", s)
		}
	}
	perService(&m, groups, "legion_service_restarts_total", "counter", "Automatic restarts since the last start by request.",
		func(st service.Status) (float64, bool) { return float64(st.Restarts), true })
	perService(&m, groups, "legion_service_ready", "gauge", "1 where the service has started and its readiness probe, if any, succeeds.",
		func(st service.Status) (float64, bool) {
			if st.Ready {
				return 1, true
			}
			return 0, true
		})
	perService(&m, groups, "legion_service_start_time_seconds", "gauge", "When the newest main process started, in Unix time.",
		func(st service.Status) (float64, bool) {
			if st.Main == nil {
				return 0, false
			}
			return float64(st.Main.Started.UnixMilli()) / 1000, true
		})
	perService(&m, groups, "legion_service_state_time_seconds", "gauge", "When the service came into its state, in Unix time.",
		func(st service.Status) (float64, bool) {
			return float64(st.Since.UnixMilli()) / 1000, !st.Since.IsZero()
		})
	perService(&m, groups, "legion_service_memory_bytes", "gauge", "Memory of the service's cgroup, where its controller counts.",
		func(st service.Status) (float64, bool) { return counted(st, "memory.current", "") })
	perService(&m, groups, "legion_service_tasks", "gauge", "Tasks in the service's cgroup, where its controller counts.",
		func(st service.Status) (float64, bool) { return counted(st, "pids.current", "") })
	perService(&m, groups, "legion_service_cpu_seconds_total", "counter", "Processor time of the service's cgroup, where the kernel counts it.",
		func(st service.Status) (float64, bool) {
			n, ok := counted(st, "cpu.stat", "usage_usec ")
			return n / 1e6, ok
		})
	return m.b.String()
}

// perService adds a family with one series for each service that has a value.
func perService(m *metricsText, groups []hostapi.Group, name, kind, help string, value func(service.Status) (float64, bool)) {
	m.family(name, kind, help)
	for _, g := range groups {
		for _, st := range g.Status.Services {
			if v, ok := value(st); ok {
				m.add(name, v, "unit", g.Spec.Name, "service", st.Name)
			}
		}
	}
}

// counted reads a number of the service's cgroup: the file's only one, or the
// one behind a word.
func counted(st service.Status, file, word string) (float64, bool) {
	if st.Cgroup == "" || !st.State.Alive() {
		return 0, false
	}
	data, err := os.ReadFile(filepath.Join(st.Cgroup, file))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, word); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			return n, err == nil
		}
	}
	return 0, false
}
