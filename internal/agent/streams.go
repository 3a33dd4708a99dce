package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// The kubelet's bounds of a stream: how long it may be idle, and how long the
// client may take to open its parts.
const (
	streamIdle     = 4 * time.Hour
	streamCreation = 30 * time.Second
)

var (
	remoteProtocols  = []string{remotecommand.StreamProtocolV4Name, remotecommand.StreamProtocolV3Name, remotecommand.StreamProtocolV2Name, remotecommand.StreamProtocolV1Name}
	forwardProtocols = []string{portforward.ProtocolV1Name}
)

func (k *kubelet) serveExec(w http.ResponseWriter, r *http.Request) {
	k.serveStreams(w, r, func(w http.ResponseWriter, r *http.Request, t target, o *remotecommand.Options) {
		remotecommand.ServeExec(w, r, k, r.PathValue("pod"), string(t.UID), r.PathValue("container"), r.Form["command"], o, streamIdle, streamCreation, remoteProtocols)
	})
}

func (k *kubelet) serveAttach(w http.ResponseWriter, r *http.Request) {
	k.serveStreams(w, r, func(w http.ResponseWriter, r *http.Request, t target, o *remotecommand.Options) {
		remotecommand.ServeAttach(w, r, attacher{k, t}, r.PathValue("pod"), string(t.UID), r.PathValue("container"), o, streamIdle, streamCreation, remoteProtocols)
	})
}

// serveStreams refuses what need not become a stream. The request's context
// ends with the client's connection.
func (k *kubelet) serveStreams(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter, *http.Request, target, *remotecommand.Options)) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod, container := r.PathValue("pod"), r.PathValue("container")
	t, err := k.find(r.Context(), r.PathValue("namespace"), pod, container)
	if err == nil {
		t, err = k.begun(r.Context(), t, container)
	}
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	case !t.Runs:
		why := t.Waiting
		if why == "" {
			why = "it has ended"
		}
		http.Error(w, fmt.Sprintf("container %q in pod %q does not run: %s", container, pod, why), http.StatusConflict)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	serve(hangUp{w, cancel}, r.WithContext(ctx), t, options)
}

// begun waits until the process of a run that has begun is there.
func (k *kubelet) begun(ctx context.Context, t target, container string) (target, error) {
	for t.Begins {
		select {
		case <-t.Changed:
		case <-t.Done:
			return t, nil
		case <-ctx.Done():
			return t, ctx.Err()
		}
		var err error
		if t, err = k.again(ctx, t.UID, container); err != nil {
			return t, err
		}
	}
	return t, nil
}

// hangUp calls lost when the connection that a handler takes over is closed:
// package http tells no more of it, nor do the streams on it.
type hangUp struct {
	http.ResponseWriter
	lost func()
}

func (h hangUp) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	told := toldConn{conn, h.lost}
	in := io.MultiReader(bytes.NewReader(bytes.Clone(early)), told)
	return told, bufio.NewReadWriter(bufio.NewReader(in), bufio.NewWriter(told)), nil
}

type toldConn struct {
	net.Conn
	lost func()
}

func (c toldConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.lost()
	}
	return n, err
}

func (c toldConn) Close() error {
	c.lost()
	return c.Conn.Close()
}

func (k *kubelet) servePortForward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod := r.PathValue("pod")
	t, err := k.find(r.Context(), r.PathValue("namespace"), pod, "")
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	portforward.ServePortForward(w, r, forwarder{k.ip, t.Done}, pod, string(t.UID), options, streamIdle, streamCreation, forwardProtocols)
}

// forwarder connects to ports in the node's network namespace, which is that of
// its pods, until done.
type forwarder struct {
	ip   string
	done <-chan struct{}
}

// addresses are where a port is looked for: at localhost, as the kubelet does,
// and at the node's own address, where daemons listen that take it from
// status.podIP. Nodes that share the loopback network have only the latter to
// themselves.
func (f forwarder) addresses() []string {
	if ip := net.ParseIP(f.ip); ip != nil && ip.IsLoopback() {
		return []string{f.ip, "127.0.0.1", "::1"}
	}
	return []string{"127.0.0.1", "::1", f.ip}
}

func (f forwarder) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	conn, err := f.dial(ctx, int(port))
	if err != nil {
		// Who calls tells the client why, and resets the stream. Before the client
		// knows that it has the stream it would read of the reset alone; to write,
		// if only nothing, waits until it has been told.
		_, _ = stream.Write(nil)
		return err
	}
	defer func() { _ = conn.Close() }()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-f.done:
			_ = conn.Close()
		case <-over:
		}
	}()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(conn, stream) // either side may hang up at any time
		_ = conn.(*net.TCPConn).CloseWrite()
	})
	_, _ = io.Copy(stream, conn)
	// What comes after the answer's end is for nobody.
	_ = stream.Close()
	_ = conn.Close()
	both.Wait()
	return nil
}

func (f forwarder) dial(ctx context.Context, port int) (net.Conn, error) {
	var problems []error
	for _, ip := range f.addresses() {
		conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(port)))
		if err == nil {
			return conn, nil
		}
		problems = append(problems, err)
	}
	return nil, fmt.Errorf("nothing on the node takes connections to port %d: %w", port, errors.Join(problems...))
}
