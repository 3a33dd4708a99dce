package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubectl/pkg/util/podutils"

	legionfleet "legion.dev/legion/internal/fleet"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/netns"
	"legion.dev/legion/test/cable"
)

// patience bounds the wait for one thing of a round, on a busy machine.
const patience = time.Minute

// daemonArgv is what the daemon of the rounds has become when it runs, and that
// of nobody else who runs them now.
var daemonArgv = []string{"sleep", fmt.Sprintf("86413.%d", os.Getpid())}

// rounds is a fleet of its own to which faults are done.
type rounds struct {
	*fleet
	t     *testing.T
	rng   *rand.Rand
	nodes []string
	// cables lead from the nodes to the server.
	cables map[string]*cable.Cable
	// clients are of the hosts, each with the connection it keeps.
	clients map[string]*hostclient.Client
	view    *view
	cgroup  string
	// locks is where the daemons say that they run; see manifest.
	locks string
	rev   int
	// seen is what ran when the last round was over, by node.
	seen map[string]daemon
	// base is what there was when the fleet had just become whole.
	base footprint
	// only are the rounds that are wanted, by name.
	only *regexp.Regexp
	// spare: the server is not killed any more.
	spare bool
}

// expectations say of a node's daemon why it is not the one there should be.
type expectations map[string]func(daemon) string

// daemon is one node's daemon.
type daemon struct {
	pod      string
	pid      int
	restarts int32
}

// TestRounds does one fault after the other to a fleet of three hosts, each with
// a network of its own, and asks after each that every node has one daemon, never
// two, that what nobody touched runs on, and that nothing is left behind.
// LEGION_ROUNDS is how many, LEGION_SEED which; LEGION_FAULT is a regular
// expression that keeps to some, as "server killed, a pod is deleted".
func TestRounds(t *testing.T) {
	needRoot(t)
	n, seed := number(t, "LEGION_ROUNDS", 20), number(t, "LEGION_SEED", 1)
	r := startRounds(t, uint64(seed))
	if !slices.ContainsFunc(faults, func(f fault) bool {
		return slices.ContainsFunc(works, func(w work) bool { return r.only.MatchString(f.name + ", " + w.name) })
	}) {
		t.Fatalf("LEGION_FAULT=%s: there is no such round", r.only)
	}
	before := r.vitals()
	tally := map[string][]time.Duration{}
	begin := time.Now()
	for i := 1; i <= n && !t.Failed(); i++ {
		r.spare = i > n*3/4
		start := time.Now()
		name := r.round(i)
		tally[name] = append(tally[name], time.Since(start))
	}
	t.Logf("%d rounds of seed %d in %s", n, seed, time.Since(begin).Round(time.Millisecond))
	for _, name := range slices.Sorted(maps.Keys(tally)) {
		all := tally[name]
		slices.Sort(all)
		t.Logf("%4d × %-40s median %4d ms, longest %5d ms", len(all), name, all[len(all)/2].Milliseconds(), all[len(all)-1].Milliseconds())
	}
	if !t.Failed() {
		r.nothingLeaked(before)
	}
}

func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv(name), strconv.Itoa(otherwise)))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// startRounds starts the fleet. Each node's directory is a small disk of its
// own, and so is the server's, and each node's cable can be cut.
func startRounds(t *testing.T, seed uint64) *rounds {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("no cables without taps: ", err)
	}
	dir, err := os.MkdirTemp("", "legion-rounds-")
	if err != nil {
		t.Fatal(err)
	}
	r := &rounds{
		fleet: &fleet{dir: dir}, t: t, rng: rand.New(rand.NewPCG(seed, 0)),
		nodes: []string{"n1", "n2", "n3"}, cables: map[string]*cable.Cable{}, clients: map[string]*hostclient.Client{}, only: regexp.MustCompile(os.Getenv("LEGION_FAULT")), locks: filepath.Join(dir, "locks"),
	}
	t.Cleanup(r.down)
	for at, size := range r.disks() {
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
	// A program that is killed again and again is not to wait longer and longer.
	for _, unit := range r.units() {
		d := filepath.Join(dir, "units", unit+".d")
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		conf := "[Service]\nRestartSteps=0\nRestartMaxDelaySec=infinity\n"
		if node, ok := strings.CutPrefix(unit, "legiond-"); ok {
			conf += "ExecStartPre=/bin/sh " + r.bootScript(strings.TrimSuffix(node, ".service")) + "\n"
		}
		write(t, filepath.Join(d, "rounds.conf"), conf)
	}
	if err := os.Mkdir(r.locks, 0o755); err != nil {
		t.Fatal(err)
	}
	mustRun(t, 3*time.Minute, "legion", "up", "--dir", dir, "--nodes", "3", "--port", "0")
	if r.client, err = clientFor(dir); err != nil {
		t.Fatal(err)
	}
	r.readState()
	r.view = watchPods(t, r.client, "app=rounds")
	r.apply(t, r.manifest())
	r.settled(nil)
	r.base = r.footprint()
	return r
}

// host is the client of a node's legiond, or of the fleet's own for "".
func (r *rounds) host(node string) *hostclient.Client {
	if r.clients[node] == nil {
		r.clients[node] = r.fleet.host(node)
	}
	return r.clients[node]
}

// units are those of the fleet's programs.
func (r *rounds) units() []string {
	units := []string{"legion-server.service"}
	for _, n := range r.nodes {
		units = append(units, "legiond-"+n+".service", "legion-agent-"+n+".service")
	}
	return units
}

// readState reads what `legion up` wrote down, and lays the cables.
func (r *rounds) readState() {
	r.t.Helper()
	var state legionfleet.State
	data, err := os.ReadFile(filepath.Join(r.dir, "fleet.json"))
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.cgroup = state.Cgroup
	network := netns.Network{ID: legionfleet.ID(r.dir), Subnet: state.Subnet}
	for _, n := range state.Nodes {
		c, err := cable.Insert(network.HubPath(), fmt.Sprintf("n%d", n.Index))
		if err != nil {
			r.t.Fatal(err)
		}
		r.cables[n.Name] = c
		r.t.Cleanup(c.Close)
	}
}

// down takes the fleet down and looks whether anything of it is left.
func (r *rounds) down() {
	if r.t.Failed() {
		r.t.Logf("the fleet's files are kept in %s", r.dir)
		for at := range r.disks() { // which go
			_, _ = run(time.Minute, "cp", "-a", at, at+".kept")
		}
	}
	defer r.cgroupsGone()()
	out, err := run(2*time.Minute, "legion", "down", "--dir", r.dir)
	if err != nil {
		r.t.Error(out, err)
	}
	for at := range r.disks() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) { // legion down has done it
			r.t.Error("unmount ", at, ": ", err)
		}
	}
	if left := processesUnder(r.dir); len(left) > 0 {
		r.t.Errorf("processes left after legion down: %v", left)
	}
	if !r.t.Failed() {
		_ = os.RemoveAll(r.dir)
	}
}

// manifest is the DaemonSet of this revision. Its process holds a lock of its
// node's for as long as it lives; a second one on a node at a time would not get
// it, and leave word.
func (r *rounds) manifest() string {
	script := `exec 9>>"$LOCKS/$NODE"; flock -n 9 || { echo "$NODE $POD" >>"$LOCKS/doubled"; exit 1; }; echo up; exec ` + strings.Join(daemonArgv, " ")
	return fmt.Sprintf(`apiVersion: apps/v1
kind: DaemonSet
metadata: {name: rounds, namespace: default}
spec:
  selector: {matchLabels: {app: rounds}}
  updateStrategy: {rollingUpdate: {maxUnavailable: 100%%}}
  template:
    metadata:
      labels: {app: rounds, rev: "%d"}
      # Whose daemon is killed again and again is not to back off.
      annotations: {unit.legion.dev/main: "RestartSec=50ms"}
    spec:
      runtimeClassName: host
      terminationGracePeriodSeconds: 5
      automountServiceAccountToken: false
      containers:
      - name: main
        image: host
        command: [sh, -c, %q]
        env:
        - {name: LOCKS, value: %q}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
`, r.rev, script, r.locks)
}

// round does one fault to one node, and one thing that a fleet must do in spite
// of it, and waits until all is as it should be. It says what it was.
func (r *rounds) round(i int) string {
	r.t.Helper()
	node, f, w := r.draw()
	name := f.name + ", " + w.name
	r.t.Logf("round %d on %s: %s", i, node, name)
	mend := f.begin(r, node)
	expected := w.begin(r, f, node)
	if f.reboots && expected[node] == nil {
		expected = expectations{node: r.again(node)}
	}
	if f.under {
		r.settled(expected)
		mend()
	} else {
		mend()
		r.settled(expected)
	}
	r.reached(node)
	r.tidy()
	return name
}

// draw chooses a node, a fault that it may have, and a thing to do.
func (r *rounds) draw() (string, fault, work) {
	for {
		node := r.nodes[r.rng.IntN(len(r.nodes))]
		f, w := faults[r.rng.IntN(len(faults))], works[r.rng.IntN(len(works))]
		switch {
		case f.kills == server && r.spare && r.only.String() == "":
		case (f.kills == hostd || f.kills == agent) && node == r.spared():
		case !r.only.MatchString(f.name + ", " + w.name):
		default:
			return node, f, w
		}
	}
}

// spared is a node whose programs are never killed: what they lose in a round
// would add up.
func (r *rounds) spared() string { return r.nodes[len(r.nodes)-1] }

// settled waits until the server, the hosts and the processes agree on one ready
// daemon a node, of the newest revision, and asks expected of each node's
// whether it is the one there should be. A node that is not in it must have the
// daemon that it had.
func (r *rounds) settled(expected expectations) {
	r.t.Helper()
	now := map[string]daemon{}
	r.view.until(patience, func(pods map[string]*corev1.Pod) string {
		clear(now)
		for _, p := range pods {
			if _, twice := now[p.Spec.NodeName]; twice || p.DeletionTimestamp != nil || !podutils.IsPodReady(p) || p.Labels["rev"] != strconv.Itoa(r.rev) {
				return "pods are still to come or to go"
			}
			d := daemon{pod: string(p.UID), restarts: p.Status.ContainerStatuses[0].RestartCount}
			if ask := expected[p.Spec.NodeName]; ask != nil {
				if why := ask(d); why != "" {
					return p.Spec.NodeName + ": " + why
				}
			}
			now[p.Spec.NodeName] = d
		}
		if len(now) != len(r.nodes) {
			return "a node has no pod"
		}
		return ""
	})
	if r.t.Failed() {
		return
	}
	r.hosts(now)
	for node, d := range now {
		if was, ok := r.seen[node]; ok && expected[node] == nil && d != was {
			r.t.Errorf("%s: nothing was done to its daemon, which was %+v and is %+v", node, was, d)
		}
	}
	if words, err := os.ReadFile(filepath.Join(r.locks, "doubled")); err == nil {
		r.t.Errorf("two daemons at a time on a node:\n%s", words)
	}
	r.seen = now
}

// hosts waits until each host has just the group of its pod, running, and fills
// in the processes.
func (r *rounds) hosts(now map[string]daemon) {
	r.t.Helper()
	r.poll("the hosts run what the server says", func() string {
		var pids []int
		for node, d := range now {
			groups, err := r.host(node).Groups(r.t.Context())
			if err != nil {
				return err.Error()
			}
			groups = slices.DeleteFunc(groups, func(g hostapi.Group) bool { return !strings.HasPrefix(g.Spec.Name, "pod-") })
			if len(groups) != 1 || groups[0].Spec.Name != "pod-"+d.pod {
				return fmt.Sprintf("%s has %d pods' groups, want just that of the pod %s", node, len(groups), d.pod)
			}
			m := groups[0].Status.Services[0].Main
			if m == nil || m.Exit != nil {
				return node + ": the daemon does not run"
			}
			d.pid = m.PID
			now[node] = d
			pids = append(pids, m.PID)
		}
		slices.Sort(pids)
		if all := pidsOf(daemonArgv...); !slices.Equal(all, pids) {
			return fmt.Sprintf("daemons have the pids %v, want %v", all, pids)
		}
		return ""
	})
}

// poll asks until why is empty: for what nobody tells of.
func (r *rounds) poll(what string, why func() string) {
	r.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		text := why()
		if text == "" {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("%s: not within %s: %s", what, patience, text)
		}
	}
}
