package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
)

// Serve opens a tunnel to the server at serverURL (https://host:port) and
// answers with handler what the server asks through it, until the tunnel breaks
// or ctx ends. config carries the node's client certificate and the server's
// CA. The error is nil only if ctx ended.
func Serve(ctx context.Context, config *tls.Config, serverURL string, handler http.Handler) error {
	err := serve(ctx, config, serverURL, handler, func() {})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Keep is Serve, again and again until ctx ends: a broken tunnel is opened anew
// after 0.2 s to 5 s. Each loss is told to lost, if it is set, and each opening
// to opened.
func Keep(ctx context.Context, config *tls.Config, serverURL string, handler http.Handler, opened func(), lost func(error)) {
	const least, most = 200 * time.Millisecond, 5 * time.Second
	wait := least
	for {
		err := serve(ctx, config, serverURL, handler, func() {
			wait = least
			if opened != nil {
				opened()
			}
		})
		if ctx.Err() != nil {
			return
		}
		if lost != nil {
			lost(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait/2)):
		}
		wait = min(2*wait, most)
	}
}

func serve(ctx context.Context, config *tls.Config, serverURL string, handler http.Handler, opened func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := dial(ctx, config, serverURL)
	if err != nil {
		return fmt.Errorf("cannot open a tunnel to %s: %w", serverURL, err)
	}
	session, err := yamux.Server(conn, settings())
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("cannot open a tunnel to %s: %w", serverURL, err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 30 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	opened()
	err = server.Serve(session)
	_ = session.Close()
	_ = server.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, yamux.ErrSessionShutdown) {
		err = errors.New("the server closed the connection")
	}
	return fmt.Errorf("tunnel to %s lost: %w", serverURL, err)
}

// dial asks the server to turn a connection into a tunnel.
func dial(ctx context.Context, config *tls.Config, serverURL string) (io.ReadWriteCloser, error) {
	if config != nil {
		config = config.Clone()
		// An upgrade is a thing of HTTP/1.1.
		config.NextProtos = []string{"http/1.1"}
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 15 * time.Second,
		TLSNextProto:          map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(serverURL, "/")+Path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", Protocol)
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		_ = resp.Body.Close()
		return nil, fmt.Errorf("the server answered %s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		_ = resp.Body.Close()
		return nil, errors.New("the connection cannot be written to after the upgrade")
	}
	return conn, nil
}
