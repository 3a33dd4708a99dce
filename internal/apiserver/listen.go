package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netns"
	genericapiserver "k8s.io/apiserver/pkg/server"
)

func listen(ip string, port int) (net.Listener, error) {
	address := net.JoinHostPort(ip, strconv.Itoa(port))
	listener, err := net.Listen("tcp", address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("cannot listen on %s: the port is in use (is a server running already? else choose another with --port)", address)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", address, err)
	}
	return listener, nil
}

// ParseNetnsAddress reads PATH=IP.
func ParseNetnsAddress(text string) (NetnsAddress, error) {
	path, address, ok := strings.Cut(text, "=")
	ip := net.ParseIP(address)
	if !ok || path == "" || ip == nil {
		return NetnsAddress{}, fmt.Errorf("%q is not of the form PATH=IP, such as /run/netns/hub=10.1.2.1", text)
	}
	return NetnsAddress{Path: path, IP: ip}, nil
}

// listenNetns listens inside another network namespace. Only the thread that
// opens the socket goes there; the socket stays, whoever uses it.
func listenNetns(address NetnsAddress, port int) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	results := make(chan result, 1)
	go func() {
		// Not unlocked: the thread ends with this goroutine, and nothing else
		// ever runs in that namespace by accident.
		runtime.LockOSThread()
		handle, err := netns.GetFromPath(address.Path)
		if err != nil {
			results <- result{err: err}
			return
		}
		defer func() { _ = handle.Close() }()
		if err := netns.Set(handle); err != nil {
			results <- result{err: err}
			return
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(address.IP.String(), strconv.Itoa(port)))
		results <- result{listener, err}
	}()
	r := <-results
	if r.err != nil {
		return nil, fmt.Errorf("cannot listen on %s port %d in the network namespace %s: %w", address.IP, port, address.Path, r.err)
	}
	return r.listener, nil
}

// serveNetns serves the same API on one more listener; the channel closes when
// it has stopped.
func (c Config) serveNetns(ctx context.Context, server *genericapiserver.GenericAPIServer, address NetnsAddress, port int) (<-chan struct{}, error) {
	listener, err := listenNetns(address, port)
	if err != nil {
		return nil, err
	}
	info := *server.SecureServingInfo
	info.Listener = listener
	stopped, _, err := info.Serve(server.Handler, stopTime, ctx.Done())
	return stopped, err
}
