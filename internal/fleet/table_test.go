package fleet

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestTable(t *testing.T) {
	set := func(name string, ready, desired int) daemonSet {
		d := daemonSet{object: object{metadata{Name: name, Namespace: "default"}}}
		d.Status.Ready, d.Status.Desired = ready, desired
		return d
	}
	mkpod := func(set, node, phase string, ready bool, waiting string) pod {
		p := pod{object: object{metadata{Name: set + "-x", Namespace: "default", Owners: []ownerReference{{"DaemonSet", set}}}}}
		p.Spec.NodeName, p.Status.Phase = node, phase
		if ready {
			p.Status.Conditions = []condition{{Type: "Ready", Status: "True"}}
		}
		c := containerStatus{Name: "main", Ready: ready}
		if waiting != "" {
			c.State.Waiting = &struct {
				Reason  string `json:"reason"`
				Message string `json:"message"`
			}{Reason: waiting}
		}
		p.Status.Containers = []containerStatus{c}
		return p
	}
	nodes := func(names ...string) []node {
		var list []node
		for _, n := range names {
			list = append(list, node{object: object{metadata{Name: n}}})
		}
		return list
	}
	pods := []pod{
		mkpod("a", "n1", "Running", true, ""), mkpod("a", "n2", "Running", false, ""),
		mkpod("b", "n1", "Pending", false, ""), mkpod("b", "n2", "Running", false, "CrashLoopBackOff"),
	}
	for _, tt := range []struct {
		nodes []node
		want  string
	}{
		{nodes("n2", "n1", "n3"), `
DAEMONSET   READY   n1        n2                 n3
a           1/2     running   not ready          -
b           0/2     pending   CrashLoopBackOff   -
`},
		{nodes("n1", "n2", "n3", "n4", "n5", "n6", "n7"), `
DAEMONSET   READY   NOT READY ON
a           1/2     n2 (not ready)
b           0/2     n1 (pending), n2 (CrashLoopBackOff)
`},
	} {
		var out bytes.Buffer
		f := &Fleet{Out: &out}
		f.table([]daemonSet{set("a", 1, 2), set("b", 0, 2)}, pods, tt.nodes)
		if got := out.String(); got != tt.want[1:] {
			t.Errorf("got\n%swant\n%s", got, tt.want[1:])
		}
	}
}

func TestProgressInAPipe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := NewProgress(&out, false)
		p.Step("fast")
		time.Sleep(time.Second)
		p.Step("slow %d", 1)
		time.Sleep(25*time.Second + time.Millisecond)
		p.Say("done")
		p.Close()
		want := []string{"   3s  slow 1", "  13s  slow 1", "  23s  slow 1", "done"}
		if got := strings.Split(strings.TrimRight(out.String(), "\n"), "\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got\n%s\nwant\n%s", out.String(), strings.Join(want, "\n"))
		}
	})
}

func TestProgressOnATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := NewProgress(&out, true)
		p.Step("working")
		time.Sleep(3*time.Second + time.Millisecond)
		p.Say("kept")
		p.Close()
		if got, want := out.String(), "\r\x1b[K   2s  working\r\x1b[K   3s  working\r\x1b[Kkept\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestQuietWhenFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := NewProgress(&out, false)
		p.Step("fast")
		time.Sleep(1900 * time.Millisecond)
		p.Close()
		if out.Len() != 0 {
			t.Errorf("got %q", out.String())
		}
	})
}
