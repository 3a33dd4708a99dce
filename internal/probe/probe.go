// Package probe asks a service how it is: over HTTP, gRPC, by opening a TCP
// connection, or by a command. What counts as well is what the kubelet counts
// as well (pkg/probe of Kubernetes).
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"legion.dev/legion/internal/service"
)

// Command runs a probe's command in the surroundings of its service, and
// returns its exit status and what it wrote. When ctx ends it kills it.
type Command func(ctx context.Context, c service.Command) (code int, output []byte, err error)

// maxBody bounds what is read of an answer, as the kubelet does.
const maxBody = 10 << 10

// Run probes once. message says why where the probe fails.
func Run(ctx context.Context, p *service.Probe, run Command) (ok bool, message string) {
	timeout := p.Timeout
	if timeout <= 0 {
		timeout = time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case p.HTTP != nil:
		return get(ctx, p.HTTP)
	case p.TCP != nil:
		return connect(ctx, p.TCP)
	case p.GRPC != nil:
		return checkHealth(ctx, p.GRPC)
	case p.Exec != nil:
		return execute(ctx, p.Exec, run, timeout)
	default:
		return false, "the probe says neither http, tcp, grpc nor exec"
	}
}

func host(h string) string {
	if h == "" {
		return "127.0.0.1"
	}
	return h
}

func connect(ctx context.Context, p *service.TCPProbe) (bool, string) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host(p.Host), strconv.Itoa(p.Port)))
	if err != nil {
		return false, err.Error()
	}
	_ = conn.Close()
	return true, ""
}

func execute(ctx context.Context, c *service.Command, run Command, timeout time.Duration) (bool, string) {
	if run == nil {
		return false, "no command can be run here"
	}
	code, output, err := run(ctx, *c)
	text := strings.TrimSpace(string(output))
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return false, fmt.Sprintf("command %q timed out after %s", c.Path, timeout)
	case err != nil:
		return false, err.Error()
	case code != 0 && text != "":
		return false, text
	case code != 0:
		return false, fmt.Sprintf("command %q ended with status %d", c.Path, code)
	}
	return true, text
}

// transport makes a new connection for each probe, and does not verify
// certificates: a probe asks whether the service answers, not who it is.
func transport() *http.Transport {
	return &http.Transport{
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		DisableKeepAlives:  true,
		DisableCompression: true,
	}
}

func get(ctx context.Context, p *service.HTTPProbe) (bool, string) {
	req, err := request(ctx, p)
	if err != nil {
		return false, err.Error()
	}
	tr := transport()
	defer tr.CloseIdleConnections()
	client := http.Client{Transport: tr, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		// To another host the kubelet does not follow, and is content.
		if next.URL.Hostname() != via[0].URL.Hostname() {
			return http.ErrUseLastResponse
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		return nil
	}}
	res, err := client.Do(req)
	if err != nil {
		return false, err.Error()
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxBody)); err != nil {
		return false, err.Error()
	}
	if p.AnyStatus {
		return true, ""
	}
	if res.StatusCode < 200 || res.StatusCode >= 400 {
		return false, fmt.Sprintf("HTTP probe failed with statuscode: %d", res.StatusCode)
	}
	return true, ""
}

func request(ctx context.Context, p *service.HTTPProbe) (*http.Request, error) {
	scheme := strings.ToLower(p.Scheme)
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(p.Path)
	if err != nil {
		u = &url.URL{Path: p.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host(p.Host), strconv.Itoa(p.Port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "legion-probe/1")
	req.Header.Set("Accept", "*/*")
	// A header with an empty value takes one away, as with the kubelet.
	for _, h := range p.Headers {
		name, value := h[0], h[1]
		switch {
		case strings.EqualFold(name, "Host"):
			req.Host = value
		case value == "" && (strings.EqualFold(name, "User-Agent") || strings.EqualFold(name, "Accept")):
			req.Header[http.CanonicalHeaderKey(name)] = nil
		case strings.EqualFold(name, "User-Agent") || strings.EqualFold(name, "Accept"):
			req.Header.Set(name, value)
		default:
			req.Header.Add(name, value)
		}
	}
	return req, nil
}
