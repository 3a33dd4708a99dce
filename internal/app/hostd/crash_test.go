package hostd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"legion.dev/legion/internal/hostapi"
)

// TestCrashAtAnyMoment kills legiond again and again while services end and
// start. Each holds a lock while it runs and tells where it does not get it:
// of no service are there ever two.
func TestCrashAtAnyMoment(t *testing.T) {
	units := map[string]string{}
	dir := t.TempDir()
	twice := filepath.Join(dir, "twice")
	script := func(i int) string {
		return fmt.Sprintf("exec 9>%s/lock%d; flock -n -E 75 9; [ $$? -ne 75 ] || echo service %d pid $$$$ >>%s; sleep 0.0%d", dir, i, i, twice, i+1)
	}
	for i := range 4 {
		kind := ""
		if i == 3 {
			kind = "Type=oneshot\nExecStart=/bin/true\n"
		}
		units[fmt.Sprintf("s%d.service", i)] = "[Unit]\nStartLimitIntervalSec=0\n[Service]\n" + kind + "ExecStart=/bin/sh -c '" + script(i) + "'\n" +
			"ExecStartPre=/bin/true\nExecStopPost=/bin/true\nRestart=" + map[bool]string{true: "on-failure", false: "always"}[i == 3] +
			"\nRestartSec=0\n[Install]\nWantedBy=multi-user.target\n"
	}
	d := newDaemon(t, units)
	enough := errors.New("enough")
	for round := range 25 {
		left := round*3%17 + 1
		err := d.client.Watch(d.ctx, func(ev hostapi.Event) error {
			if ev.Type == hostapi.Changed {
				left--
			}
			if left == 0 {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) {
			t.Fatalf("round %d: %v", round, err)
		}
		d.crash()
		d.start()
	}
	if data, err := os.ReadFile(twice); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("two of one service at a time: %s (%v)", data, err)
	}
	groups, err := d.client.Groups(d.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if len(g.Status.Services) == 0 {
			continue
		}
		s := g.Status.Services[0]
		if s.Name == "s3.service" {
			continue
		}
		if g.ActiveState == "failed" || g.ActiveState == "inactive" {
			t.Errorf("%s is %s (%s): %s", s.Name, g.ActiveState, s.State, s.Reason)
		}
		if s.Main == nil || s.Main.Number < 3 {
			t.Errorf("%s has not run much: %+v", s.Name, s.Main)
		}
	}
}
