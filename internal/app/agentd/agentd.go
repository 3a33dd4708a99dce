// Package agentd assembles legion-agent: flags, the client of legiond, and what
// keeps the process small.
package agentd

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"legion.dev/legion/internal/agent"
	"legion.dev/legion/internal/app"
	"legion.dev/legion/internal/footprint"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/service"
)

// Main is legion-agent; it returns the exit status.
func Main(args []string, stderr io.Writer) int {
	options, socket, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "legion-agent:", err)
		return 2
	}
	small()
	footprint.ReserveThreads()
	// The libraries' log repeats what the agent says better.
	klog.SetLogger(logr.Discard())
	log := slog.New(slog.NewTextHandler(stderr, nil))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ready := func() {
		if _, err := notify.Send("READY=1"); err != nil {
			log.Warn("cannot tell the service manager that the agent is ready", "error", err)
		}
		settle()
	}
	if err := agent.Run(ctx, options, host{hostclient.New(socket)}, log, ready); err != nil {
		fmt.Fprintln(stderr, "legion-agent:", err)
		return 1
	}
	return 0
}

// small keeps the agent's memory small: it holds a hundred pods at most.
func small() {
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	debug.SetGCPercent(30)
	debug.SetMemoryLimit(20 << 20)
}

// settle gives back what only the start needed.
func settle() { time.AfterFunc(5*time.Second, debug.FreeOSMemory) }

func parse(args []string, stderr io.Writer) (agent.Options, string, error) {
	o := agent.Options{Version: app.Version}
	flags := flag.NewFlagSet("legion-agent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	hostname, _ := os.Hostname()
	base := "/var/lib/legion"
	if home, err := os.UserHomeDir(); os.Geteuid() != 0 && err == nil {
		base = filepath.Join(home, ".local/share/legion")
	}
	var socket, labels, taints, dns, eviction string
	flags.StringVar(&o.Node, "node", strings.ToLower(hostname), "`name` of this node")
	flags.StringVar(&socket, "host-socket", filepath.Join(base, "host.sock"), "legiond's `socket`")
	flags.StringVar(&o.Server, "server", "", "the server's `URL`, https://HOST:PORT")
	flags.StringVar(&o.Token, "token", os.Getenv("LEGION_TOKEN"), "join `token`, or the whole line that 'legion token create' prints; needed only once (also by LEGION_TOKEN)")
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "`file` of a Kubernetes cluster to be a node of, with a node's rights, in place of joining a fleet")
	flags.StringVar(&o.Bootstrap, "bootstrap-kubeconfig", "", "`file` with the right to ask such a cluster for a node's certificate, which is kept in --dir and renewed")
	flags.StringVar(&o.Dir, "dir", filepath.Join(base, "agent"), "`directory` for the node's certificate")
	flags.StringVar(&o.NodeIP, "node-ip", "", "the node's `address` (default: the one that leads to the server)")
	flags.StringVar(&labels, "labels", "", "`k=v,…` labels of the node")
	flags.StringVar(&taints, "taints", "", "`key=value:effect,…` taints that the node is registered with (in a Kubernetes cluster "+hostTaint+"; --taints= for none)")
	flags.StringVar(&o.ClientCA, "client-ca-file", "", "`file` of the CA of a Kubernetes cluster's clients; opens the kubelet's port, for kubectl logs, exec and top")
	flags.IntVar(&o.KubeletPort, "kubelet-port", 10250, "that `port`, at the node's address")
	flags.StringVar(&o.TLSCert, "tls-cert-file", "", "`certificate` of that port (default: of a CA of the node's own)")
	flags.StringVar(&o.TLSKey, "tls-private-key-file", "", "its `key`")
	flags.Int64Var(&o.PodPids, "pod-max-pids", 0, "`number` of processes that a pod may have; 0 is no limit")
	flags.StringVar(&eviction, "eviction-hard", agent.DefaultEviction, "`signal<least,…` that must be free, else the node is under pressure and gets no new pods but those that tolerate it")
	flags.StringVar(&o.OCIRuntime, "oci-runtime", "", "`program` that runs the pods of images (default: runc or crun; none: no such pods)")
	flags.StringVar(&o.Images, "images", "", "`directory` of the image store (default: images beside --dir)")
	flags.StringVar(&o.SeccompDir, "seccomp-profile-root", "", "`directory` of the seccomp profiles that pods name (default: seccomp in --dir)")
	flags.StringVar(&dns, "cluster-dns", "", "`IP,…` of the cluster's DNS, where it has one")
	flags.StringVar(&o.ClusterDomain, "cluster-domain", "cluster.local", "`domain` of the cluster's names")
	flags.DurationVar(&o.ImageAge, "image-age", 0, "`time` after which an image of no use is removed (default: when the disk is 85 % full)")
	version := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		return o, "", err
	}
	if *version {
		fmt.Println(app.Version)
		return o, "", flag.ErrHelp
	}
	if flags.NArg() > 0 {
		return o, "", fmt.Errorf("%q is not understood: legion-agent takes flags only, see --help", flags.Arg(0))
	}
	if head, server, ok := strings.Cut(o.Token, "@"); ok {
		o.Token = head
		if o.Server == "" {
			o.Server = server
		}
	}
	if dns != "" {
		o.ClusterDNS = strings.Split(dns, ",")
	}
	var err error
	if o.Labels, err = parseLabels(labels); err != nil {
		return o, "", err
	}
	given := false
	flags.Visit(func(f *flag.Flag) { given = given || f.Name == "taints" })
	if o.InCluster() && !given {
		taints = hostTaint
	}
	if o.Taints, err = parseTaints(taints); err != nil {
		return o, "", err
	}
	if o.Eviction, err = agent.ParseEviction(eviction); err != nil {
		return o, "", fmt.Errorf("--eviction-hard: %w", err)
	}
	if o.NodeIP == "" {
		server, err := serverOf(o)
		if err != nil {
			return o, "", err
		}
		o.NodeIP = outwardIP(server)
	}
	// Who owns the socket is whom processes start as.
	if info, err := os.Stat(socket); err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			o.Root = stat.Uid == 0
		}
	} else {
		o.Root = os.Geteuid() == 0
	}
	return o, socket, o.Check()
}

func parseLabels(text string) (map[string]string, error) {
	labels := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if pair = strings.TrimSpace(pair); pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("--labels: %q is not of the form key=value", pair)
		}
		labels[name] = value
	}
	return labels, nil
}

// hostTaint keeps the pods of a Kubernetes cluster away that do not ask for
// such nodes.
const hostTaint = agent.HostLabel + ":" + string(v1.TaintEffectNoSchedule)

func parseTaints(text string) ([]v1.Taint, error) {
	var taints []v1.Taint
	for one := range strings.SplitSeq(text, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		name, effect, ok := strings.Cut(one, ":")
		key, value, _ := strings.Cut(name, "=")
		t := v1.Taint{Key: key, Value: value, Effect: v1.TaintEffect(effect)}
		effects := []v1.TaintEffect{v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute}
		if !ok || key == "" || !slices.Contains(effects, t.Effect) {
			return nil, fmt.Errorf("--taints: %q is not of the form key=value:effect with an effect of %q", one, effects)
		}
		taints = append(taints, t)
	}
	return taints, nil
}

// serverOf is the server's URL: the one that is named, or that of the cluster.
func serverOf(o agent.Options) (string, error) {
	file := cmp.Or(o.Kubeconfig, o.Bootstrap)
	if o.Server != "" || file == "" {
		return o.Server, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		return "", fmt.Errorf("cannot use the kubeconfig %s: %w", file, err)
	}
	return config.Host, nil
}

// outwardIP is the address from which this machine reaches the server; nothing
// is sent to find it.
func outwardIP(server string) string {
	u, err := url.Parse(server)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	conn, err := net.Dial("udp", net.JoinHostPort(u.Hostname(), "9"))
	if err != nil {
		return ""
	}
	defer func() { _ = conn.Close() }()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// host is legiond as the agent needs it.
type host struct{ *hostclient.Client }

func (h host) Watch(ctx context.Context, each func(hostapi.Event)) error {
	return h.Client.Watch(ctx, func(e hostapi.Event) error {
		each(e)
		return nil
	})
}

func (h host) Put(ctx context.Context, group service.Group) error {
	_, err := h.Client.Put(ctx, group)
	return err
}

func (h host) Start(ctx context.Context, name string) error {
	_, err := h.Do(ctx, name, "start", false)
	return err
}

func (h host) Delete(ctx context.Context, name string, grace time.Duration) error {
	return h.Client.Delete(ctx, name, &grace)
}
