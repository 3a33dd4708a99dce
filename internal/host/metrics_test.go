package host

import (
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

func TestMetrics(t *testing.T) {
	at := time.Unix(1000, 0)
	got := metrics(hostapi.Info{Version: `a"b`, StartedAt: at}, []hostapi.Group{
		{
			Spec: service.Group{Name: "cron.service"}, ActiveState: "active",
			Status: service.GroupStatus{Services: []service.Status{{Name: "cron.service", Restarts: 3, Ready: true, Since: at, State: service.Running, Main: &service.Run{Started: at}}}},
		},
		{Spec: service.Group{Name: "basic.target"}, ActiveState: "inactive"},
	})
	for _, want := range []string{
		`legion_build_info{version="a\"b"} 1`,
		"legion_start_time_seconds 1000",
		`legion_unit_state{unit="cron.service",state="active"} 1`,
		`legion_unit_state{unit="basic.target",state="failed"} 0`,
		`legion_service_restarts_total{unit="cron.service",service="cron.service"} 3`,
		`legion_service_start_time_seconds{unit="cron.service",service="cron.service"} 1000`,
	} {
		if !strings.Contains("\n"+got, "\n"+want+"\n") {
			t.Errorf("no line %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "legion_service_memory_bytes{") {
		t.Error("a service without a cgroup has a count of memory")
	}
	seen := map[string]bool{}
	for line := range strings.Lines(got) {
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
			if seen[name] {
				t.Errorf("family twice: %s", name)
			}
			seen[name] = true
		}
	}
}
