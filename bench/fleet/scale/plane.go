package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// plane is the control plane that is measured.
type plane struct {
	config *rest.Config
	pids   []int
	log    string // the file it writes
	close  func()
}

// open starts a control plane in a directory of its own, or takes the one that
// was named.
func open(ctx context.Context, o options) (*plane, error) {
	if o.stock != "" {
		return startStock(ctx, o)
	}
	p := &plane{close: func() {}}
	var err error
	if o.kubeconfig == "" {
		return p, p.start(ctx, o)
	}
	for s := range strings.SplitSeq(o.pids, ",") {
		if pid, err := strconv.Atoi(s); err == nil {
			p.pids = append(p.pids, pid)
		}
	}
	p.config, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	return p.unlimited(), err
}

func (p *plane) unlimited() *plane {
	if p.config != nil {
		p.config.QPS = -1
	}
	return p
}

func (p *plane) start(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp(o.scratch, "server-")
	if err != nil {
		return err
	}
	// Where the machine is busy, simulated nodes may renew late; what is
	// measured is not how long the control plane waits for them.
	args := []string{"--dir", dir, "--port", "0", "--node-grace", "10m"}
	if o.profile != "" {
		args = append(args, "--profiling")
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	cmd := exec.Command(o.server, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start %s: %w (build it with 'make build')", o.server, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	p.pids, p.log = []int{cmd.Process.Pid}, log.Name()
	p.close = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		_ = log.Close()
		_ = os.RemoveAll(dir)
	})
	// The kubeconfig is written once the server answers.
	path := filepath.Join(dir, "admin.kubeconfig")
	for limit := time.Now().Add(time.Minute); ; {
		if p.config, err = clientcmd.BuildConfigFromFlags("", path); err == nil {
			p.unlimited()
			return nil
		}
		select {
		case <-ended:
			err = errors.New("it ended")
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(20 * time.Millisecond):
			if time.Now().Before(limit) {
				continue
			}
			err = errors.New("it is not ready within a minute")
		}
		said, _ := os.ReadFile(log.Name())
		p.close()
		return fmt.Errorf("cannot use %s: %w\n%s", o.server, err, said)
	}
}

// said is the end of what the control plane has logged.
func (p *plane) said() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-4000):])
}

// memory is resident memory in bytes, of all processes together; files is the
// part of now that is mapped files.
type memory struct{ now, peak, files int64 }

func (p *plane) memory() (m memory) {
	for _, pid := range p.pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.SplitSeq(string(text), "\n") {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			kib, _ := strconv.ParseInt(fields[1], 10, 64)
			switch fields[0] {
			case "VmRSS:":
				m.now += kib << 10
			case "RssFile:":
				m.files += kib << 10
			case "VmHWM:":
				m.peak += kib << 10
			}
		}
	}
	return m
}

// cpu is the processor time the control plane has taken, to a hundredth of a
// second (proc_pid_stat(5)).
func (p *plane) cpu() (d time.Duration) {
	for _, pid := range p.pids {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(text), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 13 {
			continue
		}
		for _, s := range fields[11:13] {
			ticks, _ := strconv.ParseInt(s, 10, 64)
			d += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return d
}

// profile has the server profile itself beside what follows.
func (p *plane) profile(ctx context.Context, prefix, what string, d time.Duration) <-chan error {
	saved := make(chan error, 1)
	if prefix == "" {
		saved <- nil
		return saved
	}
	started := make(chan struct{})
	go func() {
		close(started)
		server := make(chan error, 1)
		go func() {
			server <- p.save(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(d.Seconds())), prefix+"-"+what+".pprof")
		}()
		own := profileSelf(ctx, prefix+"-"+what+"-fleet.pprof", d)
		saved <- errors.Join(own, <-server)
	}()
	<-started
	_ = wait(ctx, 200*time.Millisecond)
	return saved
}

// profileSelf profiles this process, which is the simulated fleet.
func profileSelf(ctx context.Context, path string, d time.Duration) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	if err := pprof.StartCPUProfile(file); err != nil {
		return fmt.Errorf("cannot profile the fleet: %w", err)
	}
	defer pprof.StopCPUProfile()
	return wait(ctx, d)
}

func (p *plane) save(ctx context.Context, uri, path string) error {
	client, err := kubernetes.NewForConfig(p.config)
	if err != nil {
		return err
	}
	data, err := client.Discovery().RESTClient().Get().RequestURI(uri).DoRaw(ctx)
	if err != nil {
		return fmt.Errorf("cannot read the server's profile: %w", err)
	}
	return os.WriteFile(path, data, 0o600)
}

// transactions measures what one etcd in this process makes durable in a
// second, on the same disk.
func transactions(ctx context.Context, scratch string) (float64, error) {
	dir, err := os.MkdirTemp(scratch, "etcd-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	config := embed.NewConfig()
	config.Dir = dir
	config.ListenClientUrls, config.ListenPeerUrls = nil, nil
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return 0, fmt.Errorf("cannot start an etcd: %w", err)
	}
	defer etcd.Close()
	select {
	case <-etcd.Server.ReadyNotify():
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	const writers, each = 64, 300
	value := make([]byte, 2048)
	errs := make(chan error, writers)
	began := time.Now()
	for w := range writers {
		go func() {
			for i := range each {
				_, err := etcd.Server.Put(ctx, &etcdserverpb.PutRequest{Key: fmt.Appendf(nil, "/%d/%d", w, i), Value: value})
				if err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			return 0, fmt.Errorf("cannot write to an etcd: %w", err)
		}
	}
	return writers * each / time.Since(began).Seconds(), nil
}
