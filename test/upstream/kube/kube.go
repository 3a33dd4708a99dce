// Package kube runs upstream's kube-apiserver, with an etcd of its own, in the
// calling process, as its command line would with the given flags.
package kube

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

// patience is how long etcd and the API server may each take to start.
const patience = 2 * time.Minute

// Server is a running kube-apiserver.
type Server struct {
	// Config reaches it as a member of system:masters, without a rate limit.
	Config *rest.Config
	stop   func()
}

// Stop ends the API server, then its etcd, and returns when both have ended.
func (s *Server) Stop() { s.stop() }

// Start runs etcd and kube-apiserver with their data in dir, a short path, and
// returns when the API server is ready. One process can run one.
func Start(ctx context.Context, dir string, flags ...string) (*Server, error) {
	endpoint, stopEtcd, err := startEtcd(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("cannot start etcd in %s: %w", dir, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	stop := func() {
		cancel()
		<-ended
		stopEtcd()
	}
	opts, config, err := prepare(dir, endpoint, flags)
	if err != nil {
		cancel()
		stopEtcd()
		return nil, fmt.Errorf("cannot prepare kube-apiserver: %w", err)
	}
	go func() {
		defer close(ended)
		ended <- run(ctx, opts)
	}()
	if err := ready(ctx, config, ended); err != nil {
		stop()
		return nil, fmt.Errorf("cannot start kube-apiserver: %w", err)
	}
	return &Server{Config: config, stop: stop}, nil
}

func run(ctx context.Context, opts *options.ServerRunOptions) error {
	if err := opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	completed, err := opts.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return errors.Join(errs...)
	}
	return app.Run(ctx, completed)
}

// prepare writes the server's keys and returns its options and a client's.
func prepare(dir, endpoint string, flags []string) (*options.ServerRunOptions, *rest.Config, error) {
	key, err := keyutil.MakeEllipticPrivateKeyPEM()
	if err != nil {
		return nil, nil, err
	}
	token := make([]byte, 16)
	_, _ = rand.Read(token) // it never fails
	keyFile, tokens := filepath.Join(dir, "accounts.key"), filepath.Join(dir, "tokens")
	for path, data := range map[string][]byte{
		keyFile: key, tokens: []byte(hex.EncodeToString(token) + ",admin,admin,system:masters\n"),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, nil, err
		}
	}
	opts := options.NewServerRunOptions()
	set := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, f := range opts.Flags().FlagSets {
		set.AddFlagSet(f)
	}
	if err := set.Parse(append([]string{
		"--etcd-servers=" + endpoint,
		"--cert-dir=" + dir,
		"--bind-address=127.0.0.1",
		"--endpoint-reconciler-type=none",
		"--service-cluster-ip-range=10.0.0.0/16",
		"--authorization-mode=Node,RBAC",
		"--token-auth-file=" + tokens,
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file=" + keyFile,
		"--service-account-key-file=" + keyFile,
	}, flags...)); err != nil {
		return nil, nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	address := listener.Addr().(*net.TCPAddr)
	opts.SecureServing.Listener, opts.SecureServing.BindPort = listener, address.Port
	return opts, &rest.Config{
		Host:            "https://" + address.String(),
		BearerToken:     hex.EncodeToString(token),
		TLSClientConfig: rest.TLSClientConfig{CAFile: filepath.Join(dir, "apiserver.crt")},
		QPS:             -1,
	}, nil
}

// ready waits until the server says that it is ready and has its namespaces.
func ready(ctx context.Context, config *rest.Config, ended <-chan error) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, patience, true, func(ctx context.Context) (bool, error) {
		select {
		case err := <-ended:
			return false, fmt.Errorf("it ended: %w", err)
		default:
		}
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			// Its certificate is not written yet.
			last = err
			return false, nil
		}
		status := 0
		last = client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).StatusCode(&status).Error()
		return last == nil && status == http.StatusOK, nil
	})
	if err != nil && last != nil {
		return fmt.Errorf("%w (last: %w)", err, last)
	}
	return err
}

func startEtcd(ctx context.Context, dir string) (string, func(), error) {
	config := embed.NewConfig()
	config.Dir = filepath.Join(dir, "etcd")
	config.LogLevel = "fatal" // errors are returned
	socket := filepath.Join(dir, "etcd.sock")
	config.ListenClientUrls = []url.URL{{Scheme: "unix", Path: socket}}
	config.AdvertiseClientUrls = config.ListenClientUrls
	// One member: nothing listens for peers.
	config.ListenPeerUrls = nil
	config.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.QuotaBackendBytes = 8 << 30
	// What is stored need not outlive the machine, and its disk may be busy.
	config.UnsafeNoFsync = true
	server, err := embed.StartEtcd(config)
	if err != nil {
		return "", nil, err
	}
	select {
	case <-server.Server.ReadyNotify():
		return "unix://" + socket, server.Close, nil
	case err = <-server.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(patience):
		err = fmt.Errorf("not ready within %v", patience)
	}
	server.Close()
	return "", nil, err
}
