// Command e2e runs upstream's e2e cases of DaemonSets and ControllerRevisions,
// from upstream's own test binary, against legion-server with simulated nodes,
// or against a fleet of real ones that run containers (as root, with runc):
//
//	go test -c -o e2e.test k8s.io/kubernetes/test/e2e
//	go run ./e2e -server ../../bin/legion-server -binary ./e2e.test
//	go run ./e2e -real ../../bin -nodes 3 -binary ./e2e.test
//
// It prints a table of the cases and fails unless all of them passed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/test/sim"
)

const (
	// files are those of upstream whose cases are run.
	files = `test/e2e/apps/(daemon_set|controller_revision)\.go`
	// cases is how many there are in v1.37.2.
	cases = 11
	// unpullable is the image that upstream's cases take for one that no
	// registry has.
	unpullable = "foo:non-existent"
)

type options struct {
	server, real, binary, log string
	nodes                     int
	limit                     time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.server, "server", "bin/legion-server", "the control plane to start")
	flag.StringVar(&o.real, "real", "", "the `directory` of Legion's programs, for a fleet of real nodes by legion up in place of -server and simulated ones")
	flag.StringVar(&o.binary, "binary", "", "upstream's e2e test `binary`")
	flag.StringVar(&o.log, "log", "", "the `file` that takes what the binary writes (default: a temporary one, kept if a case fails)")
	flag.IntVar(&o.nodes, "nodes", 4, "how many nodes there are; upstream's cases need two")
	flag.DurationVar(&o.limit, "limit", 25*time.Minute, "how long all cases may take")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		if !errors.As(err, new(*toldError)) {
			fmt.Fprintln(os.Stderr, "e2e:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.real != "" {
		if elsewhere, err := isolate(ctx); elsewhere || err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "upstream-e2e-")
	if err != nil {
		return err
	}
	if o.log == "" {
		o.log = filepath.Join(dir, "e2e.log")
	}
	defer func() {
		if err == nil {
			_ = os.RemoveAll(dir)
		} else {
			err = fmt.Errorf("%w (what the cases wrote is in %s, the server's log in %s)", err, o.log, dir)
		}
	}()
	if o.real != "" {
		return runReal(ctx, o, dir)
	}
	return runSimulated(ctx, o, dir)
}

// runReal runs the cases on a fleet of real nodes.
func runReal(ctx context.Context, o options, dir string) (err error) {
	f, err := startFleet(ctx, o.real, dir, o.nodes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	kubeconfig := filepath.Join(f.dir, "admin.kubeconfig")
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	if err := makeService(ctx, config); err != nil {
		return err
	}
	kubectl, err := f.kubectl()
	if err != nil {
		return err
	}
	return errors.Join(runCases(ctx, o, dir, kubeconfig, "-kubectl-path="+kubectl), tellExecs(o.log))
}

// runSimulated runs them on legion-server and nodes of test/sim.
func runSimulated(ctx context.Context, o options, dir string) error {
	kubeconfig, stopServer, err := startServer(ctx, o.server, dir)
	if err != nil {
		return err
	}
	defer stopServer()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	if err := makeService(ctx, config); err != nil {
		return err
	}
	life, endFleet := context.WithCancel(ctx)
	fleet, err := sim.Start(life, sim.Config{
		REST: config, Nodes: o.nodes, FinalStatus: true, Seed: 1,
		Start:    sim.Span{Min: 200 * time.Millisecond, Max: 2 * time.Second},
		Stop:     sim.Span{Min: 100 * time.Millisecond, Max: 2 * time.Second},
		Pullable: func(image string) bool { return image != unpullable },
		Log:      slog.New(slog.DiscardHandler), // a case's namespace may go before its pods' last status
	})
	if err != nil {
		endFleet()
		return err
	}
	defer fleet.Wait()
	defer endFleet()
	return runCases(ctx, o, dir, kubeconfig)
}

// startServer runs legion-server until stop is called, with its log in dir, and
// returns when it is ready.
func startServer(ctx context.Context, program, dir string) (kubeconfig string, stop func(), err error) {
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return "", nil, err
	}
	cmd := exec.Command(program, "--dir", dir, "--port", "0")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return "", nil, fmt.Errorf("cannot start %s: %w (build it with 'make build')", program, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		_ = log.Close()
	}
	kubeconfig = filepath.Join(dir, "admin.kubeconfig")
	err = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		select {
		case <-ended:
			return false, errors.New("it ended")
		default:
		}
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return false, nil // not written yet
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return false, err
		}
		return client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error() == nil, nil
	})
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("%s did not become ready: %w", program, err)
	}
	return kubeconfig, stop, nil
}

// makeService makes the Service by which upstream's suite learns the family of
// the cluster's addresses. Legion routes no services and has none of its own.
func makeService(ctx context.Context, config *rest.Config) error {
	config = rest.CopyConfig(config)
	config.WarningHandler = rest.NoWarnings{} // that it is not routed
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	_, err = client.CoreV1().Services(metav1.NamespaceDefault).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}},
	}, metav1.CreateOptions{})
	return err
}

// runCases runs the binary and prints what became of each case.
func runCases(ctx context.Context, o options, dir, kubeconfig string, more ...string) error {
	log, err := os.Create(o.log)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	report := filepath.Join(dir, "report.json")
	cmd := exec.CommandContext(ctx, o.binary, append(more,
		"-kubeconfig="+kubeconfig,
		"-provider=skeleton",
		"-ginkgo.focus-file="+files,
		"-ginkgo.no-color", "-ginkgo.v",
		"-ginkgo.json-report="+report,
		"-ginkgo.timeout="+o.limit.String(),
	)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	ran := cmd.Run()
	passed, err := table(report)
	switch {
	case ran != nil:
		return fmt.Errorf("%s: %w", o.binary, ran)
	case err != nil:
		return err
	case passed != cases:
		return fmt.Errorf("%d cases passed, want %d", passed, cases)
	}
	return nil
}

// table prints the cases of a report and counts those that passed.
func table(path string) (passed int, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("the binary wrote no report: %w", err)
	}
	var suites []types.Report
	if err := json.Unmarshal(data, &suites); err != nil {
		return 0, fmt.Errorf("cannot read the binary's report: %w", err)
	}
	fmt.Println("| case | state | seconds |\n| --- | --- | --: |")
	for _, suite := range suites {
		for _, spec := range suite.SpecReports {
			if spec.LeafNodeType != types.NodeTypeIt || spec.State.Is(types.SpecStateSkipped|types.SpecStatePending) {
				continue
			}
			fmt.Printf("| %s | %s | %.1f |\n", spec.LeafNodeText, spec.State, spec.RunTime.Seconds())
			if spec.State.Is(types.SpecStatePassed) {
				passed++
			} else {
				fmt.Fprintf(os.Stderr, "%s:\n%s\n%s\n", spec.LeafNodeText, spec.Failure.Message, spec.Failure.Location)
			}
		}
	}
	return passed, nil
}
