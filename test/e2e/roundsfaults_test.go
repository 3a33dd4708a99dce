package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/test/cable"
)

// program is one that a fault kills.
type program int

const (
	nobody program = iota
	hostd
	agent
	server
)

// fault is one that befalls a node, or the server.
type fault struct {
	name  string
	kills program
	// under: all must become well while it lasts; else when it is over.
	under bool
	// cut: the node and the server do not hear each other.
	cut bool
	// reboots: no process of the node is left.
	reboots bool
	// refuses: the node may fail to start what it should.
	refuses bool
	// begin begins it; what it returns ends it, and waits until it has.
	begin func(r *rounds, node string) (mend func())
}

var faults = []fault{
	{name: "no fault", begin: func(*rounds, string) func() { return func() {} }},
	{name: "cut", cut: true, begin: lay(cable.State{Cut: true})},
	{name: "50 ms late", under: true, begin: lay(cable.State{Delay: 50 * time.Millisecond})},
	{name: "10 % lost", under: true, begin: lay(cable.State{Loss: 0.1})},
	{name: "legiond killed", kills: hostd, begin: kill(func(node string) string { return "legiond-" + node + ".service" })},
	{name: "agent killed", kills: agent, begin: kill(func(node string) string { return "legion-agent-" + node + ".service" })},
	{name: "legiond and agent killed", kills: hostd, begin: func(r *rounds, node string) func() {
		a := kill(func(node string) string { return "legiond-" + node + ".service" })(r, node)
		b := kill(func(node string) string { return "legion-agent-" + node + ".service" })(r, node)
		return func() { a(); b() }
	}},
	{name: "server killed", kills: server, begin: kill(func(string) string { return "legion-server.service" })},
	{name: "rebooted", kills: hostd, reboots: true, begin: reboot},
	{name: "disk full", refuses: true, begin: func(r *rounds, node string) func() {
		free := fillDisk(r, filepath.Join(r.dir, "nodes", node))
		length := r.moment(200 * time.Millisecond)
		return func() { time.Sleep(length); free() }
	}},
	{name: "server's disk full", begin: fillServer},
	{name: "no more pids", refuses: true, begin: exhaustPids},
}

// moment is how long a fault lasts, or how far something has come when it
// strikes: any time up to most.
func (r *rounds) moment(most time.Duration) time.Duration {
	return time.Duration(r.rng.Int64N(int64(most)))
}

// lay changes the cable of the node.
func lay(s cable.State) func(*rounds, string) func() {
	return func(r *rounds, node string) func() {
		r.cables[node].Set(s)
		length := r.moment(200 * time.Millisecond)
		return func() {
			if s.Cut {
				time.Sleep(length)
			}
			r.cables[node].Set(cable.State{})
		}
	}
}

// kill kills the main process of a unit of the fleet a moment later, in the
// midst of what else the round does.
func kill(unit func(node string) string) func(*rounds, string) func() {
	return func(r *rounds, node string) func() {
		name := unit(node)
		g, err := r.host("").Group(r.t.Context(), name)
		if err != nil {
			r.t.Fatal(err)
		}
		before := mainRun(r.t, g)
		killed := make(chan error, 1)
		time.AfterFunc(r.moment(50*time.Millisecond), func() { killed <- syscall.Kill(before.PID, syscall.SIGKILL) })
		return func() {
			if err := <-killed; err != nil {
				r.t.Fatalf("kill %s: %v", name, err)
			}
			untilGroup(r.t, r.host(""), name, patience, "ready again", func(g *hostapi.Group) bool {
				s := g.Status.Services[0]
				return s.Main != nil && s.Main.Number > before.Number && s.Main.Exit == nil && s.Ready
			})
		}
	}
}

// disks are the directories that are small disks of their own, and their sizes:
// the nodes' and the server's.
func (r *rounds) disks() map[string]string {
	disks := map[string]string{filepath.Join(r.dir, "server"): "192m"}
	for _, node := range r.nodes {
		disks[filepath.Join(r.dir, "nodes", node)] = "64m"
	}
	return disks
}

// fillDisk leaves no byte of a disk.
func fillDisk(r *rounds, disk string) (free func()) {
	path := filepath.Join(disk, "filler")
	f, err := os.Create(path)
	if err != nil {
		r.t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		n, err := f.Write(make([]byte, size))
		switch {
		case err == nil:
		case !errors.Is(err, syscall.ENOSPC):
			r.t.Fatal(err)
		case n == 0:
			size /= 2
		}
	}
	return func() {
		if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
			r.t.Error(err)
		}
	}
}

// fillServer fills the server's disk, which it outlives. Nothing can be asked for
// before there is room.
func fillServer(r *rounds, _ string) func() {
	runs := func() uint64 {
		g, err := r.host("").Group(r.t.Context(), "legion-server.service")
		if err != nil {
			r.t.Fatal(err)
		}
		return mainRun(r.t, g).Number
	}
	before := runs()
	free := fillDisk(r, filepath.Join(r.dir, "server"))
	freed := make(chan struct{})
	time.AfterFunc(r.moment(2*time.Second), func() { free(); close(freed) })
	return func() {
		<-freed
		if now := runs(); now != before {
			r.t.Errorf("the server ended on its full disk: it runs for the %dth time, not the %dth", now, before)
		}
	}
}

// exhaustPids lets the node's legiond, and what it starts, fork no more: each
// attempt fails as it does on a machine without a free pid.
func exhaustPids(r *rounds, node string) func() {
	g, err := r.host("").Group(r.t.Context(), "legiond-"+node+".service")
	if err != nil {
		r.t.Fatal(err)
	}
	pid := mainRun(r.t, g).PID
	home, err := pidsCgroup(pid)
	if err != nil {
		r.t.Fatal(err)
	}
	tight := filepath.Join(home, "legion-rounds-"+filepath.Base(r.dir)+"-"+node)
	if err := os.Mkdir(tight, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		r.t.Fatal(err)
	}
	put := func(file, text string) error { return os.WriteFile(file, []byte(text), 0) }
	if err := errors.Join(put(filepath.Join(tight, "cgroup.procs"), strconv.Itoa(pid)), put(filepath.Join(tight, "pids.max"), "1")); err != nil {
		r.t.Fatal(err)
	}
	length := r.moment(200 * time.Millisecond)
	return func() {
		time.Sleep(length)
		if err := put(filepath.Join(tight, "pids.max"), "max"); err != nil {
			r.t.Fatal(err)
		}
		// Whatever was born there goes back to where legiond was.
		r.poll("the group without pids is empty", func() string {
			data, err := os.ReadFile(filepath.Join(tight, "cgroup.procs"))
			if err != nil {
				return err.Error()
			}
			for _, p := range strings.Fields(string(data)) {
				_ = put(filepath.Join(home, "cgroup.procs"), p) // it may have ended
			}
			if err := os.Remove(tight); err != nil {
				return err.Error()
			}
			return ""
		})
	}
}

// pidsCgroup is the directory of the pids controller's group of a process.
func pidsCgroup(pid int) (string, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		// hierarchy:controllers:path (cgroups(7)); none are named in version 2
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for mount := range strings.Lines(string(mounts)) {
			before, after, _ := strings.Cut(strings.TrimSpace(mount), " - ")
			f := strings.Fields(before)
			v1 := fields[1] == "pids" && strings.HasPrefix(after, "cgroup ") && strings.HasSuffix(after, ",pids")
			v2 := fields[1] == "" && strings.HasPrefix(after, "cgroup2 ")
			if len(f) < 5 || !v1 && !v2 {
				continue
			}
			dir := filepath.Join(f[4], fields[2])
			if _, err := os.Stat(filepath.Join(dir, "pids.max")); err == nil || v1 {
				return dir, nil
			}
		}
	}
	return "", errors.New("no cgroup counts pids")
}

// work is what a fleet must do in spite of the fault.
type work struct {
	name string
	// begin asks for it and says which daemons there shall be.
	begin func(r *rounds, f fault, node string) expectations
}

var works = []work{
	{"nothing to do", func(*rounds, fault, string) expectations { return nil }},
	{"a daemon dies", killDaemon},
	{"a pod is deleted", deletePod},
	{"a new revision", revise},
}

func killDaemon(r *rounds, f fault, node string) expectations {
	was := r.seen[node]
	if !f.reboots {
		kill9(r.t, was.pid)
	}
	if f.cut {
		// Nobody but the node itself can help.
		untilGroup(r.t, r.host(node), "pod-"+was.pod, patience, "a new run without the server", func(g *hostapi.Group) bool {
			m := g.Status.Services[0].Main
			return m != nil && m.PID != 0 && m.PID != was.pid && m.Exit == nil
		})
	}
	expected := r.again(node)
	if !f.refuses {
		return expectations{node: expected}
	}
	return expectations{node: func(d daemon) string {
		d.restarts = min(d.restarts, was.restarts+1)
		return expected(d)
	}}
}

// again expects the pod that there was, whose daemon was started once more.
func (r *rounds) again(node string) func(daemon) string {
	was := r.seen[node]
	return func(d daemon) string {
		switch {
		case d.pod != was.pod:
			return "the pod was replaced where its daemon had died"
		case d.restarts <= was.restarts:
			return "the restart is not counted yet"
		case d.restarts > was.restarts+1:
			return fmt.Sprintf("%d restarts are counted after %d and one death", d.restarts, was.restarts)
		}
		return ""
	}
}

// reboot ends all processes of a node at once and takes what a machine loses
// that starts anew: /run, and the boot ID by which pids mean anything.
func reboot(r *rounds, node string) func() {
	write(r.t, filepath.Join(r.dir, "nodes", node, "rebooted"), "")
	var before []service.Run
	units := []string{"legiond-" + node + ".service", "legion-agent-" + node + ".service"}
	for _, unit := range units {
		g, err := r.host("").Group(r.t.Context(), unit)
		if err != nil {
			r.t.Fatal(err)
		}
		before = append(before, mainRun(r.t, g))
	}
	for _, pid := range []int{before[0].PID, r.seen[node].pid, before[1].PID} {
		kill9(r.t, pid)
	}
	return func() {
		for i, unit := range units {
			untilGroup(r.t, r.host(""), unit, patience, "ready again", func(g *hostapi.Group) bool {
				s := g.Status.Services[0]
				return s.Main != nil && s.Main.Number > before[i].Number && s.Main.Exit == nil && s.Ready
			})
		}
	}
}

// bootScript writes what is run before a node's legiond, and says where.
func (r *rounds) bootScript(node string) string {
	path := filepath.Join(r.dir, "boot-"+node)
	write(r.t, path, fmt.Sprintf(`cd %q || exit 1
[ -e rebooted ] || exit 0
rm -rf run
sed -i "s/$(cat /proc/sys/kernel/random/boot_id)/00000000-0000-0000-0000-000000000000/g" state/runs/log
rm rebooted
`, filepath.Join(r.dir, "nodes", node)))
	return path
}

// another expects a pod that is not the one there was.
func (r *rounds) another(node string) func(daemon) string {
	was := r.seen[node]
	return func(d daemon) string {
		if d.pod == was.pod {
			return "the old pod is still there"
		}
		return ""
	}
}

func deletePod(r *rounds, _ fault, node string) expectations {
	uid := types.UID(r.seen[node].pod)
	r.ask("delete a pod", func(ctx context.Context) error {
		list, err := r.client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if p.UID == uid {
				return r.client.CoreV1().Pods("default").Delete(ctx, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
			}
		}
		return nil
	})
	return expectations{node: r.another(node)}
}

func revise(r *rounds, _ fault, _ string) expectations {
	r.rev++
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"labels":{"rev":"%d"}}}}}`, r.rev)
	r.ask("patch the DaemonSet", func(ctx context.Context) error {
		_, err := r.client.AppsV1().DaemonSets("default").Patch(ctx, "rounds", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	})
	all := expectations{}
	for _, n := range r.nodes {
		all[n] = r.another(n)
	}
	return all
}

// ask asks the server until it has answered; it may be the one that was killed.
func (r *rounds) ask(what string, call func(context.Context) error) {
	r.t.Helper()
	r.poll(what, func() string {
		ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
		defer cancel()
		err := call(ctx)
		if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return ""
		}
		return err.Error()
	})
}
