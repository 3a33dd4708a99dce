package agent

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestPressure(t *testing.T) {
	f := facts{
		MemoryTotal: 8 << 30, MemoryAvailable: 200 << 20, DiskTotal: 1000, DiskAvailable: 95,
		Inodes: 100, InodesFree: 50, ProcessesAtMost: 100, Processes: 90,
	}
	for text, want := range map[string]string{
		"":                                      "DiskPressure: less than 10% is free (legion-agent --eviction-hard nodefs.available)",
		"nodefs.available<9%":                   "",
		"nodefs.available<96, pid.available<5%": "DiskPressure: less than 96 is free (legion-agent --eviction-hard nodefs.available)",
		"nodefs.available<0%,nodefs.inodesFree<60%": "DiskPressure: less than 60% is free (legion-agent --eviction-hard nodefs.inodesFree)",
		"nodefs.available<0,memory.available<201Mi": "MemoryPressure: less than 201Mi is free (legion-agent --eviction-hard memory.available)",
		"nodefs.available<0,pid.available<11":       "PIDPressure: less than 11 is free (legion-agent --eviction-hard pid.available)",
	} {
		e, err := ParseEviction(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		var got []string
		for kind, why := range e.pressures(f) {
			_, least, _ := strings.Cut(why, ": ")
			got = append(got, string(kind)+": "+least)
		}
		if all := strings.Join(got, "; "); all != want {
			t.Errorf("%q: %q, want %q", text, all, want)
		}
	}
	for _, text := range []string{"disk<5%", "nodefs.available", "nodefs.available>5%", "nodefs.available<101%", "nodefs.available<-1", "memory.available<much"} {
		if e, err := ParseEviction(text); err == nil {
			t.Errorf("%q is %v", text, e)
		}
	}
	// What cannot be counted is not short.
	if short := Eviction(nil).pressures(facts{MemoryTotal: 1 << 30, MemoryAvailable: 1 << 30}); len(short) > 0 {
		t.Errorf("%v", short)
	}
	n := makeNode(nodeInput{Facts: f, Least: Eviction{}})
	for _, c := range n.Status.Conditions {
		if c.Type != v1.NodeReady && c.Status != v1.ConditionFalse {
			t.Errorf("%+v", c)
		}
	}
}
