// Package serverd assembles the program legion-server: the control plane, the
// making of join tokens, and kubectl for the fleet.
package serverd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"legion.dev/legion/internal/apiserver"
	"legion.dev/legion/internal/app"
	"legion.dev/legion/internal/controller"
	"legion.dev/legion/internal/footprint"
)

// Main runs the program with these arguments and returns its exit status.
func Main(args []string) int {
	// kubectl has flags of its own, so its arguments are not read here.
	if status, done := tryKubectl(args); done {
		return status
	}
	root := command(os.Stdout, os.Stderr)
	root.SetArgs(args)
	// legion carries its fleet verbs out with this program.
	name := "legion-server"
	if os.Args[0] == "legion" {
		name, root.Use = "legion", "legion"
	}
	if err := root.ExecuteContext(context.Background()); err != nil {
		var exit exitStatus
		if errors.As(err, &exit) {
			return int(exit)
		}
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		return 1
	}
	return 0
}

// defaultDir is where the fleet is, unless told: LEGION_DIR, else /var/lib/legion
// for root, else ~/.legion.
func defaultDir() string {
	if dir := os.Getenv("LEGION_DIR"); dir != "" {
		return dir
	}
	if os.Geteuid() == 0 {
		return "/var/lib/legion"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ".legion"
	}
	return filepath.Join(home, ".legion")
}

func command(stdout, stderr io.Writer) *cobra.Command {
	config := apiserver.Config{}
	var namespaces []string
	own := controller.Config{}
	daemonSets := true
	root := &cobra.Command{
		Use:           "legion-server --dir DIR",
		Short:         "The control plane of a Legion fleet",
		Version:       app.Version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, text := range namespaces {
				address, err := apiserver.ParseNetnsAddress(text)
				if err != nil {
					return fmt.Errorf("--listen-netns: %w", err)
				}
				config.ListenNetns = append(config.ListenNetns, address)
			}
			own.LeaveDaemonSets = !daemonSets
			return serve(cmd.Context(), config, own, stderr)
		},
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	flags := root.Flags()
	flags.StringVar(&config.Dir, "dir", defaultDir(), "the fleet's directory")
	flags.StringVar(&config.Listen, "listen", "127.0.0.1", "IP `address` to listen on")
	flags.IntVar(&config.Port, "port", 6443, "TCP port to listen on; 0 takes a free one")
	flags.StringArrayVar(&namespaces, "listen-netns", nil, "listen also inside a network namespace: `PATH=IP` (repeatable)")
	flags.StringSliceVar(&config.TLSSAN, "tls-san", nil, "more `names` and addresses by which clients reach the server")
	flags.StringSliceVar(&config.EtcdServers, "etcd-servers", nil, "`URLs` of an etcd to use in place of the one inside the server")
	flags.StringVar(&config.EtcdCA, "etcd-cafile", "", "CA `file` of that etcd")
	flags.StringVar(&config.EtcdCert, "etcd-certfile", "", "client certificate `file` for that etcd")
	flags.StringVar(&config.EtcdKey, "etcd-keyfile", "", "client key `file` for that etcd")
	flags.DurationVar(&own.NodeGrace, "node-grace", 40*time.Second, "how long a node may be silent before it counts as gone")
	flags.BoolVar(&daemonSets, "daemonset-controller", true, "carry DaemonSets out; false leaves them to a controller elsewhere (legion-server controller)")
	flags.BoolVar(&config.Profiling, "profiling", false, "serve profiles at /debug/pprof to administrators")
	root.AddCommand(tokenCommand(), planCommand(), rolloutCommand(), imageCommand(), controllerCommand(stderr), kubectlHelp())
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

// quiet keeps of the libraries' log what an operator must see: what is wrong,
// and not what breaks because the server is being stopped.
func quiet(ctx context.Context, stderr io.Writer) *slog.Logger {
	warnings := slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})
	klog.SetSlogLogger(slog.New(untilEnd{warnings, ctx}))
	return slog.New(slog.NewTextHandler(stderr, nil))
}

// hungUp is what the library says of every kubectl exec when it is over.
const hungUp = "Error on socket receive"

// untilEnd drops what is logged after the context has ended, and what is no
// error.
type untilEnd struct {
	slog.Handler
	ctx context.Context
}

func (h untilEnd) Handle(ctx context.Context, record slog.Record) error {
	if h.ctx.Err() != nil || record.Message == hungUp {
		return nil
	}
	return h.Handler.Handle(ctx, record)
}

func (h untilEnd) WithAttrs(attrs []slog.Attr) slog.Handler {
	return untilEnd{h.Handler.WithAttrs(attrs), h.ctx}
}

func (h untilEnd) WithGroup(name string) slog.Handler {
	return untilEnd{h.Handler.WithGroup(name), h.ctx}
}

func serve(ctx context.Context, config apiserver.Config, own controller.Config, stderr io.Writer) error {
	started := time.Now()
	footprint.ReserveThreads()
	notify := notifier()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	logger := quiet(ctx, stderr)
	giveBack := func() {
		if err := shrink(apiserver.StoreFile(config.Dir)); err != nil {
			logger.Warn("cannot give memory back", "error", err)
		}
	}
	config.Controllers = func(ctx context.Context, inside apiserver.Inside) error {
		own.Log = logger
		return runControllers(ctx, inside, own, len(config.EtcdServers) > 0)
	}
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return err
	}
	config.Dir = dir
	// A control plane holds much that lives long; collecting more often costs
	// little and keeps it small.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(calmGrowth)
		go paceCollection(ctx, giveBack)
	}
	var serving atomic.Value
	config.Full = func(why error) {
		status := "STATUS=nothing is written: "
		if why == nil {
			logger.Info("there is room again: things are written")
			status, _ = serving.Load().(string)
		} else {
			logger.Error("nothing is written until there is room", "error", why)
			status += why.Error()
		}
		_ = notify(status) // it is said in the log
	}
	config.Ready = func(url string) {
		serving.Store("STATUS=serving at " + url)
		logger.Info("ready", "url", url, "after", time.Since(started).Round(time.Millisecond), "kubeconfig", apiserver.AdminKubeconfig(dir))
		if err := notify("READY=1\nSTATUS=serving at " + url); err != nil {
			logger.Warn("cannot tell the service manager that the server is ready", "error", err)
		}
	}
	go func() {
		select {
		case <-ctx.Done():
		case <-time.After(settled):
			giveBack()
			<-ctx.Done()
		}
		_ = notify("STOPPING=1")
	}()
	return apiserver.Run(ctx, config)
}

// settled is when a server has surely started.
const settled = 8 * time.Second

// notifier returns what tells the service manager, by sd_notify(3), where there
// is one. The address is taken out of the environment: the API server's library
// would say READY=1 as soon as it listens, before the fleet can be used.
func notifier() func(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	_ = os.Unsetenv("NOTIFY_SOCKET")
	if path == "" {
		return func(string) error { return nil }
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	return func(state string) error {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			return err
		}
		_, err = conn.Write([]byte(state))
		return errors.Join(err, conn.Close())
	}
}
