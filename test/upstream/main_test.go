package upstream

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/scheduler"
	"k8s.io/kubernetes/pkg/scheduler/profile"

	"legion.dev/legion/internal/app/serverd"
	"legion.dev/legion/test/upstream/kube"
)

// which says whose controller is tested: Legion's as its program runs, in
// processes of its own. The cases are upstream's, so upstream's own controller
// passes them too: that checks the cases.
var which = flag.String("controller", "legion", "whose DaemonSet controller is tested: `legion` or upstream")

// client reaches the API server of all tests.
var client kubernetes.Interface

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(serverd.Main(os.Args[1:]))
	}
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	dir, err := os.MkdirTemp("", "upstream-")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithCancel(context.Background())
	// No controller of service accounts or of nodes runs here: pods need no
	// account, and new nodes get no taint that nobody would take off.
	server, err := kube.Start(ctx, dir, "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
	if err != nil {
		cancel()
		return 0, err
	}
	defer server.Stop()
	defer cancel()
	client = kubernetes.NewForConfigOrDie(server.Config)
	if err := runScheduler(ctx, client); err != nil {
		return 0, fmt.Errorf("cannot run the scheduler: %w", err)
	}
	switch *which {
	case "legion":
		legion, err = startPrograms(ctx, server.Config, dir)
		if err != nil {
			return 0, fmt.Errorf("cannot run legion-server controller: %w", err)
		}
	case "upstream":
		if err := runUpstream(ctx, server.Config); err != nil {
			return 0, fmt.Errorf("cannot run upstream's controller: %w", err)
		}
	default:
		return 0, fmt.Errorf("-controller=%s: want legion or upstream", *which)
	}
	code := m.Run()
	if legion != nil {
		err = legion.stop()
	}
	return code, err
}

// runScheduler runs upstream's scheduler as kube-scheduler does by default.
func runScheduler(ctx context.Context, client kubernetes.Interface) error {
	factory := scheduler.NewInformerFactory(client, 0, nil)
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()})
	s, err := scheduler.New(ctx, client, factory, nil, profile.NewRecorderFactory(broadcaster))
	if err != nil {
		return err
	}
	broadcaster.StartRecordingToSink(ctx.Done())
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	if err := s.WaitForHandlersSync(ctx); err != nil {
		return err
	}
	go s.Run(ctx)
	return nil
}

// runUpstream runs upstream's DaemonSet controller as kube-controller-manager
// does, without its rate limit.
func runUpstream(ctx context.Context, config *rest.Config) error {
	client := kubernetes.NewForConfigOrDie(rest.AddUserAgent(config, "daemon-set-controller"))
	factory := informers.NewSharedInformerFactory(client, 0)
	c, err := daemon.NewDaemonSetsController(ctx, factory.Apps().V1().DaemonSets(), factory.Apps().V1().ControllerRevisions(),
		factory.Core().V1().Pods(), factory.Core().V1().Nodes(), client, flowcontrol.NewBackOff(time.Second, 15*time.Minute))
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	go c.Run(ctx, 2)
	return nil
}
