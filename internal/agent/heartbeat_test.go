package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// fakeNodes is a server with room for one node and its lease.
type fakeNodes struct {
	t     *testing.T
	mu    sync.Mutex
	node  *v1.Node
	lease *coordinationv1.Lease
	fail  error
	log   []string
}

func (f *fakeNodes) say(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.log = append(f.log, fmt.Sprintf(format, args...))
	}
	return f.fail
}

func (f *fakeNodes) expect(want ...string) {
	f.t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := strings.Join(f.log, "\n"); got != strings.Join(want, "\n") {
		f.t.Errorf("asked:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	f.log = nil
}

func (f *fakeNodes) set(fail error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func missing(kind, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: kind}, name)
}

func readyWord(n *v1.Node) string {
	for _, c := range n.Status.Conditions {
		if c.Type == v1.NodeReady {
			return string(c.Status) + " " + c.Reason
		}
	}
	return "unknown"
}

func (f *fakeNodes) GetNode(context.Context, string) (*v1.Node, error) { return f.node.DeepCopy(), nil }

func (f *fakeNodes) CreateNode(_ context.Context, n *v1.Node) (*v1.Node, error) {
	if err := f.say("register ready=%s", readyWord(n)); err != nil {
		return nil, err
	}
	if f.node != nil {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "nodes"}, n.Name)
	}
	f.node = n.DeepCopy()
	return n.DeepCopy(), nil
}

func (f *fakeNodes) PatchNode(_ context.Context, _ string, patch []byte, sub ...string) (*v1.Node, error) {
	if f.node == nil {
		return nil, missing("nodes", "n1")
	}
	old, _ := json.Marshal(f.node)
	text, err := strategicpatch.StrategicMergePatch(old, patch, v1.Node{})
	if err != nil {
		return nil, err
	}
	next := &v1.Node{}
	if err := json.Unmarshal(text, next); err != nil {
		return nil, err
	}
	if err := f.say("patch %v ready=%s labels=%d", sub, readyWord(next), len(next.Labels)); err != nil {
		return nil, err
	}
	f.node = next
	return next.DeepCopy(), nil
}

func (f *fakeNodes) GetLease(context.Context, string) (*coordinationv1.Lease, error) {
	if f.lease == nil {
		return nil, missing("leases", "n1")
	}
	return f.lease.DeepCopy(), nil
}

func (f *fakeNodes) CreateLease(_ context.Context, l *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	if err := f.say("lease"); err != nil {
		return nil, err
	}
	f.lease = l.DeepCopy()
	return l.DeepCopy(), nil
}

func (f *fakeNodes) UpdateLease(_ context.Context, l *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	if f.lease == nil {
		return nil, missing("leases", "n1")
	}
	if err := f.say("renew"); err != nil {
		return nil, err
	}
	f.lease = l.DeepCopy()
	return l.DeepCopy(), nil
}

func startHeartbeat(t *testing.T, f *fakeNodes, read func() (facts, error)) *heartbeat {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	h := &heartbeat{
		node: nodeInput{Name: "n1", IP: "10.0.0.7", Version: "v1", Labels: map[string]string{"zone": "a"}},
		api:  f, log: slog.New(slog.NewTextHandler(io.Discard, nil)), read: read,
		hostState: make(chan error), registered: make(chan struct{}),
	}
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return h
}

func healthy() (facts, error) {
	return facts{CPUs: 2, MemoryTotal: 8 << 30, MemoryAvailable: 4 << 30, DiskTotal: 100, DiskAvailable: 50}, nil
}

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNodes{t: t}
		h := startHeartbeat(t, f, healthy)
		f.expect() // it waits for legiond
		h.hostState <- nil
		f.expect("register ready=True LegionReady", "lease")
		if f.node.Status.Capacity.Cpu().Value() != 2 || f.lease.OwnerReferences[0].Name != "n1" {
			t.Errorf("%+v %+v", f.node, f.lease)
		}
		time.Sleep(21 * time.Second)
		f.expect("renew", "renew")

		// legiond is away for a moment, and then for long.
		h.hostState <- errors.New("no socket")
		time.Sleep(time.Second)
		h.hostState <- nil
		f.expect()
		h.hostState <- errors.New("no socket")
		time.Sleep(hostPatience + time.Second)
		f.expect("patch [status] ready=False HostUnreachable labels=4")
		h.hostState <- nil
		f.expect("patch [status] ready=True LegionReady labels=4")

		// Somebody deletes the lease.
		f.mu.Lock()
		f.lease = nil
		f.mu.Unlock()
		time.Sleep(renewEvery)
		f.expect("patch [status] ready=True LegionReady labels=4", "lease")

		// The server is away: on its return the status is told again, for the
		// node may have been marked as lost.
		f.set(errors.New("connection refused"))
		time.Sleep(time.Minute)
		f.set(nil)
		time.Sleep(2 * time.Second)
		f.expect("patch [status] ready=True LegionReady labels=4", "renew")
	})
}

func TestHeartbeatOfKnownNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeNodes{t: t, node: &v1.Node{}}
		f.node.Name = "n1"
		low := func() (facts, error) {
			x, _ := healthy()
			x.DiskAvailable, x.MemoryAvailable = 5, 1<<20
			return x, nil
		}
		h := startHeartbeat(t, f, low)
		time.Sleep(hostPatience + time.Second)
		f.expect("register ready=False HostUnreachable", "patch [] ready=unknown labels=4", "patch [status] ready=False HostUnreachable labels=4", "lease")
		h.hostState <- nil
		f.expect("patch [status] ready=True LegionReady labels=4")
		for _, c := range f.node.Status.Conditions {
			want := v1.ConditionTrue
			if c.Type == v1.NodePIDPressure {
				want = v1.ConditionFalse
			}
			if c.Status != want {
				t.Errorf("%+v", c)
			}
		}
		// The node is deleted: it stays so.
		f.node, f.lease = nil, nil
		time.Sleep(30 * time.Second)
		for _, line := range f.log {
			if strings.HasPrefix(line, "register") {
				t.Error("registered again")
			}
		}
	})
}

func TestFacts(t *testing.T) {
	f, err := readFacts("/proc", t.TempDir())
	if err != nil || f.MemoryTotal < 1<<20 || f.CPUs < 1 || f.DiskTotal == 0 || f.Kernel == "" || f.OSImage == "" {
		t.Errorf("%+v, %v", f, err)
	}
	dir := t.TempDir()
	if _, err := readFacts(dir, dir); err == nil || !strings.Contains(err.Error(), "size of the memory") {
		t.Errorf("no /proc: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "os"), []byte("ID=x\nPRETTY_NAME=\"An OS 1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := osImage(filepath.Join(dir, "os")); got != "An OS 1" {
		t.Errorf("%q", got)
	}
}
