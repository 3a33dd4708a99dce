package serverd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/internal/controller"
)

// Exit statuses of the controller, beside 0 and 1.
const (
	exitRights exitStatus = 3
	exitOther  exitStatus = 4
)

// answerTime is how long the cluster may take to answer the first question, and
// to say what is allowed.
const answerTime = 15 * time.Second

const controllerHelp = `Run Legion's DaemonSet controller on a Kubernetes cluster whose own one is off
(kube-controller-manager --controllers=*,-daemonset-controller), or on a Legion
server started with --daemonset-controller=false.

Where the cluster's own controller cannot be turned off, --rollouts-only leaves
pods to it and carries out updates only: of DaemonSets with updateStrategy
OnDelete and an annotation of rollout.legion.dev, by deleting outdated pods in
the order and at the pace that the annotations ask for.

Any number may run; by the Lease legion-controller one of them works at a time.
The cluster is the one of --kubeconfig, else of KUBECONFIG, else of
~/.kube/config, else the one in which this runs as a pod.

Exit status: 0 after SIGTERM or SIGINT; 1 if it cannot start, since a flag is
wrong or the cluster does not answer; 3 if the cluster does not allow what is
needed (--print-rbac prints manifests that do); 4 if another DaemonSet
controller is active, which it would fight.`

type controllerOptions struct {
	kubeconfig, context string
	namespace, identity string
	rolloutsOnly        bool
	printRBAC           bool
	look                time.Duration
	lease               time.Duration
	health              string
}

func controllerCommand(stderr io.Writer) *cobra.Command {
	var o controllerOptions
	c := &cobra.Command{
		Use:   "controller --kubeconfig FILE",
		Short: "Run the DaemonSet controller on another cluster",
		Long:  controllerHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.printRBAC {
				text, err := controller.RBAC(o.rolloutsOnly, o.namespace)
				if err == nil {
					_, err = cmd.OutOrStdout().Write(text)
				}
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			return o.run(ctx, stderr)
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig `file` of the cluster")
	flags.StringVar(&o.context, "context", "", "`name` of the kubeconfig's context (default: its current one)")
	flags.BoolVar(&o.rolloutsOnly, "rollouts-only", false, "carry out updates only, beside the cluster's own DaemonSet controller")
	flags.DurationVar(&o.look, "look-for-other", 10*time.Second, "how long to look for another DaemonSet controller before the start; 0 does not look")
	flags.StringVar(&o.namespace, "lease-namespace", metav1.NamespaceSystem, "`namespace` of the Lease")
	flags.DurationVar(&o.lease, "lease-duration", 15*time.Second, "how long others wait for one that is silent")
	flags.StringVar(&o.identity, "identity", "", "`name` of this process in the Lease, another one for each process (default: the host's and a random part)")
	flags.StringVar(&o.health, "health", "", "`address` (IP:PORT) where /healthz and /readyz answer (default: nowhere)")
	flags.BoolVar(&o.printRBAC, "print-rbac", false, "print manifests with the rights that are needed, and end")
	return c
}

func (o *controllerOptions) run(ctx context.Context, stderr io.Writer) error {
	if o.lease < 5*time.Second {
		return fmt.Errorf("--lease-duration %s: too short, the least is 5s", o.lease)
	}
	config, err := o.restConfig()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("cannot use the cluster at %s: %w", config.Host, err)
	}
	own, err := o.reach(ctx, client, config.Host, stderr)
	if err != nil {
		return err
	}
	log := quiet(ctx, stderr)
	mode := controller.ModeAll
	if o.rolloutsOnly {
		mode = controller.ModeUpdatesOnly
	}
	e := &controller.Election{
		Namespace: o.namespace, Identity: o.identity, Duration: o.lease, Log: log,
		Labels: map[string]string{controller.ModeLabel: mode},
	}
	if o.health != "" {
		stop, err := serveHealth(o.health, e, log)
		if err != nil {
			return err
		}
		defer stop()
	}
	fenced, err := kubernetes.NewForConfig(e.Fence(config))
	if err != nil {
		return fmt.Errorf("cannot use the cluster at %s: %w", config.Host, err)
	}
	return e.Lead(ctx, client, func(ctx context.Context) error {
		return controller.Run(ctx, controller.Config{
			Client: fenced, Log: log,
			// Legion's server has no scheduler.
			LeaveBinding: !own, LeaveNodes: true, RolloutsOnly: o.rolloutsOnly,
			Ready: func() { log.Info("working", "cluster", config.Host, "rollouts only", o.rolloutsOnly) },
		})
	})
}

func (o *controllerOptions) restConfig() (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: o.context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("no cluster found: %w (name it with --kubeconfig or KUBECONFIG)", err)
	}
	// The pace is found out from how the server does.
	config.QPS = -1
	config.UserAgent = controller.FieldManager + "/" + rest.DefaultKubernetesUserAgent()
	return config, nil
}

// reach makes sure that the cluster answers, allows what is needed and has no
// other controller for the same. It says whether it is a Legion server.
func (o *controllerOptions) reach(ctx context.Context, client kubernetes.Interface, host string, stderr io.Writer) (own bool, err error) {
	asking, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var info version.Info
	body, err := client.Discovery().RESTClient().Get().AbsPath("/version").DoRaw(asking)
	if err == nil {
		err = json.Unmarshal(body, &info)
	}
	if err != nil {
		return false, fmt.Errorf("cannot reach the cluster at %s: %w", host, err)
	}
	missing, err := controller.MissingRights(asking, client, o.rolloutsOnly, o.namespace)
	if err != nil {
		return false, fmt.Errorf("cannot use the cluster at %s: %w", host, err)
	}
	if len(missing) > 0 {
		mode := ""
		if o.rolloutsOnly {
			mode = " --rollouts-only"
		}
		fmt.Fprintf(stderr, "legion-server: the cluster at %s does not allow this user to:\n  %s\nTo allow it to the service account %s/%s: legion-server controller%s --lease-namespace %s --print-rbac | kubectl apply -f -\n",
			host, strings.Join(missing, "\n  "), o.namespace, controller.RoleName, mode, o.namespace)
		return false, exitRights
	}
	own = strings.HasSuffix(info.GitVersion, "+legion")
	if o.look > 0 {
		err = o.lookForOther(ctx, client, host, stderr)
	}
	return own, err
}

// lookForOther refuses to start where another controller does the same.
func (o *controllerOptions) lookForOther(ctx context.Context, client kubernetes.Interface, host string, stderr io.Writer) error {
	if o.rolloutsOnly {
		who, err := controller.Driver(ctx, client, o.namespace)
		if err != nil || who == "" {
			return err
		}
		fmt.Fprintf(stderr, "legion-server: at %s Legion's own DaemonSet controller is active (%s holds the Lease %s/%s), which carries out updates by itself. --rollouts-only is for clusters where another one makes the pods.\n",
			host, who, o.namespace, controller.FieldManager)
		return exitOther
	}
	who, err := controller.OtherController(ctx, client, o.namespace, o.look)
	if err != nil {
		return fmt.Errorf("%w (--look-for-other 0 does not look)", err)
	}
	if who == "" {
		return nil
	}
	fmt.Fprintf(stderr, "legion-server: the cluster at %s has a DaemonSet controller that is active: a new DaemonSet got its status from %q. Two would fight.\n"+
		"Turn it off (kube-controller-manager --controllers=*,-daemonset-controller; legion-server --daemonset-controller=false), or leave pods to kube-controller-manager's and carry out updates only: --rollouts-only.\n", host, who)
	return exitOther
}

// serveHealth answers whether the process does what it should. Standing by is
// that, too.
func serveHealth(address string, e *controller.Election, log *slog.Logger) (stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot serve /healthz: %w", err)
	}
	answer := func(w http.ResponseWriter, _ *http.Request) {
		if err := e.Check(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		state := "standing by"
		if leader := e.Leader(); e.Holds() {
			state = "leading"
		} else if leader != "" {
			state += ": " + leader + " leads"
		}
		_, _ = fmt.Fprintln(w, "ok:", state)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", answer)
	mux.HandleFunc("/readyz", answer)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("health is not served any more", "error", err)
		}
	}()
	log.Info("serving health", "url", "http://"+listener.Addr().String()+"/healthz")
	return func() { _ = server.Close() }, nil
}
