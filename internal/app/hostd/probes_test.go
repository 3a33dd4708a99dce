package hostd

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"legion.dev/legion/internal/service"
)

// TestProbesOfUnits: the start of a unit waits until it is ready, by a line in
// its log, a port or a command; and one that is not well is restarted.
func TestProbesOfUnits(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	well := filepath.Join(t.TempDir(), "well")
	if err := os.WriteFile(well, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, map[string]string{
		"log.service":   "[Service]\nX-ReadinessProbe=log:ready to serve [0-9]+\nX-ReadinessProbePeriodSec=50ms\nExecStart=/bin/sh -c 'sleep 0.2; echo ready to serve 7; exec sleep 1000'\n",
		"tcp.service":   "[Service]\nX-ReadinessProbe=tcp://127.0.0.1:" + port + "\nExecStart=/bin/sleep 1000\n",
		"mute.service":  "[Service]\nX-ReadinessProbe=log:never\nTimeoutStartSec=300ms\nExecStart=/bin/sleep 1000\n",
		"after.service": "[Unit]\nRequires=log.service\nAfter=log.service\n[Service]\nExecStart=/bin/sleep 1000\n",
		"sick.service":  "[Service]\nRestart=always\nRestartSec=0\nX-LivenessProbe=exec:/bin/test -e " + well + "\nX-LivenessProbePeriodSec=20ms\nX-LivenessProbeFailureThreshold=2\nExecStart=/bin/sleep 1000\n",
	})
	d.must("after.service", "start")
	first, second := d.running("log.service"), d.running("after.service")
	if !first.Ready || second.Main.Started.Sub(first.Main.Started).Milliseconds() < 200 {
		t.Errorf("ready: %v, started at %s, and what comes after it at %s", first.Ready, first.Main.Started, second.Main.Started)
	}
	d.must("tcp.service", "start")
	if s := d.running("tcp.service"); !s.Ready {
		t.Errorf("tcp.service is not ready: %s", s.Probe)
	}
	if err := d.do("mute.service", "start"); err == nil || !strings.Contains(err.Error(), "it runs and is not ready: readiness probe failed: no line") {
		t.Errorf("the start of mute.service gives %v", err)
	}
	d.must("sick.service", "start")
	if err := os.Remove(well); err != nil {
		t.Fatal(err)
	}
	d.until("sick.service", func(s service.Status) bool { return s.Restarts > 0 })
}
