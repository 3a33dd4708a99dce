package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubectl/pkg/util/podutils"

	"legion.dev/legion/bench/figures"
)

type bench struct {
	bin string
	all []*figures.Series

	serverReady, serverEmpty                                    *figures.Series
	up, again, down                                             *figures.Series
	serverRSS, agentRSS, hostRSS, rootRSS                       *figures.Series
	addReady, addRunning, readyToRunning, addCovered, nodesGone *figures.Series
}

func newBench(bin string) *bench {
	b := &bench{bin: bin}
	s := func(name, unit string) *figures.Series {
		one := &figures.Series{Name: name, Unit: unit}
		b.all = append(b.all, one)
		return one
	}
	b.serverReady = s("`legion-server` from an empty directory to READY=1", "s")
	b.serverEmpty = s("its RSS, no nodes, idle", "MB")
	b.up = s("`make up` with everything built: 3 nodes, 9 daemons ready", "s")
	b.again = s("`legion up` of a fleet that is up", "s")
	b.serverRSS = s("`legion-server` RSS, 3 nodes, 9 daemons, idle", "MB")
	b.agentRSS = s("`legion-agent` RSS, 3 daemons, idle", "MB")
	b.hostRSS = s("`legiond` RSS of a node, 3 daemons, idle", "MB")
	b.rootRSS = s("`legiond` RSS of the fleet, 8 services, idle", "MB")
	b.addReady = s("`legion nodes add` to the node Ready", "s")
	b.addRunning = s("`legion nodes add` to its 3 daemons running", "s")
	b.readyToRunning = s("node Ready to its 3 daemons running", "s")
	b.addCovered = s("`legion nodes add` to its 3 daemons ready (probes included)", "s")
	b.nodesGone = s("`legion nodes remove`", "s")
	b.down = s("`make down` of 3 nodes, 9 daemons", "s")
	return b
}

func (b *bench) round(ctx context.Context, settle time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute+2*settle)
	defer cancel()
	if err := b.server(ctx, settle); err != nil {
		return fmt.Errorf("the server alone: %w", err)
	}
	dir, err := os.MkdirTemp("", "legion-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := timed(b.up, func() error { return b.make(ctx, dir, "up") }); err != nil {
		return err
	}
	err = b.fleet(ctx, dir, settle)
	return errors.Join(err, timed(b.down, func() error { return b.make(ctx, dir, "down") }))
}

func (b *bench) make(ctx context.Context, dir, target string) error {
	return run(exec.CommandContext(ctx, "make", "LEGION_DIR="+dir, target))
}

func run(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

func timed(s *figures.Series, f func() error) error {
	begin := time.Now()
	if err := f(); err != nil {
		return err
	}
	s.Add(time.Since(begin).Seconds())
	return nil
}

// server runs a server alone, from an empty directory.
func (b *bench) server(ctx context.Context, settle time.Duration) error {
	dir, err := os.MkdirTemp("", "legion-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer notify.Close()
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "legion-server"), "--dir", filepath.Join(dir, "fleet"), "--port", "0")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	if err := notify.SetReadDeadline(begin.Add(time.Minute)); err != nil {
		return err
	}
	for buf := make([]byte, 4096); ; {
		n, err := notify.Read(buf)
		if err != nil {
			return err
		}
		if bytes.Contains(buf[:n], []byte("READY=1")) {
			break
		}
	}
	b.serverReady.Add(time.Since(begin).Seconds())
	time.Sleep(settle)
	mb, err := rss(cmd.Process.Pid)
	b.serverEmpty.Add(mb)
	return err
}

// fleet takes the figures of a fleet that is up.
func (b *bench) fleet(ctx context.Context, dir string, settle time.Duration) error {
	legion := filepath.Join(b.bin, "legion")
	if err := timed(b.again, func() error {
		return run(exec.CommandContext(ctx, legion, "up", "--dir", dir, "--nodes", "3"))
	}); err != nil {
		return err
	}
	time.Sleep(settle)
	for _, of := range []struct {
		s    *figures.Series
		argv []string
	}{
		{b.serverRSS, []string{"legion-server", "--dir", dir}},
		{b.agentRSS, []string{"legion-agent", "--node", "n1"}},
		{b.hostRSS, []string{"legiond", "--dir", filepath.Join(dir, "nodes", "n1")}},
		{b.rootRSS, []string{"legiond", "--dir", dir}},
	} {
		mb, err := b.rssOf(dir, of.argv)
		if err != nil {
			return err
		}
		of.s.Add(mb)
	}
	if err := b.join(ctx, dir, legion); err != nil {
		return err
	}
	return timed(b.nodesGone, func() error {
		return run(exec.CommandContext(ctx, legion, "nodes", "remove", "n4", "--dir", dir))
	})
}

// join adds a node and watches when it and its daemons are there.
func (b *bench) join(ctx context.Context, dir, legion string) error {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=n4"})
	if err != nil {
		return err
	}
	defer nodes.Stop()
	pods, err := client.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=n4"})
	if err != nil {
		return err
	}
	defer pods.Stop()
	begin := time.Now()
	added := make(chan error, 1)
	go func() {
		added <- run(exec.CommandContext(ctx, legion, "nodes", "add", "n4", "--dir", dir))
	}()
	var readyAt, runningAt, coveredAt time.Time
	running, ready := map[string]bool{}, map[string]bool{}
	for coveredAt.IsZero() || readyAt.IsZero() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("n4 is not covered: %w", ctx.Err())
		case ev := <-nodes.ResultChan():
			if n, ok := ev.Object.(*corev1.Node); ok && readyAt.IsZero() && nodeReady(n) {
				readyAt = time.Now()
			}
		case ev := <-pods.ResultChan():
			p, ok := ev.Object.(*corev1.Pod)
			if !ok || ev.Type == watch.Deleted {
				continue
			}
			if p.Status.Phase == corev1.PodRunning {
				running[p.Name] = true
			}
			if podutils.IsPodReady(p) {
				ready[p.Name] = true
			}
			if len(running) == 3 && runningAt.IsZero() {
				runningAt = time.Now()
			}
			if len(ready) == 3 {
				coveredAt = time.Now()
			}
		}
	}
	b.addReady.Add(readyAt.Sub(begin).Seconds())
	b.addRunning.Add(runningAt.Sub(begin).Seconds())
	b.readyToRunning.Add(max(0, runningAt.Sub(readyAt).Seconds()))
	b.addCovered.Add(coveredAt.Sub(begin).Seconds())
	return <-added
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// rssOf finds a process by the beginning of its command line.
func (b *bench) rssOf(dir string, argv []string) (float64, error) {
	want := filepath.Join(b.bin, argv[0]) + "\x00" + strings.Join(argv[1:], "\x00") + "\x00"
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if bytes.HasPrefix(cmdline, []byte(want)) && bytes.Contains(cmdline, []byte(dir)) {
			return rss(pid)
		}
	}
	return 0, fmt.Errorf("no process %s", strings.Join(argv, " "))
}

// rss is a process's resident memory in MB (10^6 bytes).
func rss(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			return kb * 1024 / 1e6, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", pid)
}
