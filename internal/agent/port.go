package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/rest"

	"legion.dev/legion/internal/pki"
)

// servingDir is where, in the agent's directory, the node keeps the CA of its
// own of which the port's certificate is, unless it is given one.
const servingDir = "serving"

// openPort opens the kubelet's port, at which the API server of a cluster asks
// what Legion's asks through the tunnel. The result serves it until ctx ends.
func openPort(o Options, config *rest.Config, handler http.Handler, log *slog.Logger) (func(ctx context.Context), error) {
	fail := func(err error) error { return fmt.Errorf("cannot open the kubelet's port: %w", err) }
	reviewer, err := newReviewer(config)
	if err != nil {
		return nil, fail(err)
	}
	tlsConfig, err := portTLS(o)
	if err != nil {
		return nil, fail(err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(o.NodeIP, strconv.Itoa(o.KubeletPort)))
	if err != nil {
		return nil, fail(err)
	}
	server := &http.Server{
		Handler: &gate{o.Node, reviewer, handler}, TLSConfig: tlsConfig, ReadHeaderTimeout: 30 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), // who hangs up in a handshake
	}
	return func(ctx context.Context) {
		defer context.AfterFunc(ctx, func() { _ = server.Close() })()
		if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the kubelet's port is closed: kubectl logs and exec do not work for this node", "error", err)
		}
	}, nil
}

// portTLS reads the files at each handshake: they may be replaced at any time.
func portTLS(o Options) (*tls.Config, error) {
	certFile, keyFile := o.TLSCert, o.TLSKey
	if certFile == "" {
		dir := filepath.Join(o.Dir, servingDir)
		authority, err := pki.OpenAuthority(dir)
		if err == nil {
			err = authority.Server(dir, "kubelet", []string{o.Node, o.NodeIP})
		}
		if err != nil {
			return nil, err
		}
		certFile, keyFile = filepath.Join(dir, "kubelet.crt"), filepath.Join(dir, "kubelet.key")
	}
	fresh := func() (*tls.Config, error) {
		cert, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, err
		}
		caPEM, err := os.ReadFile(o.ClientCA)
		if err != nil {
			return nil, err
		}
		clients := x509.NewCertPool()
		if !clients.AppendCertsFromPEM(caPEM) {
			return nil, fmt.Errorf("%s: no certificate in it", o.ClientCA)
		}
		return &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
			ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients, NextProtos: []string{"h2", "http/1.1"},
		}, nil
	}
	first, err := fresh()
	if err != nil {
		return nil, err
	}
	first.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return fresh() }
	return first, nil
}
