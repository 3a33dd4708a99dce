package tunnel

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// StreamPath, followed by a node's name, is where a server takes streams of
// other servers to a node whose tunnel it has.
const StreamPath = "/legion/v1/stream/"

// streamProtocol is the value of their Upgrade header.
const streamProtocol = "legion-stream"

// askTime bounds the opening of a stream through another server.
const askTime = 5 * time.Second

// Pass turns the request of another server into a stream to a node, if that has
// its tunnel here, and returns when the stream is over.
func (s *Sessions) Pass(w http.ResponseWriter, r *http.Request, node string) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), streamProtocol) {
		w.Header().Set("Upgrade", streamProtocol)
		http.Error(w, "this path only takes streams: the header Upgrade: "+streamProtocol+" is missing", http.StatusUpgradeRequired)
		return
	}
	stream, err := s.dialHere(node)
	if missing := (*NotConnectedError)(nil); errors.As(err, &missing) {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = stream.Close() }()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "cannot turn this connection into a stream, ask by HTTP/1.1: "+err.Error(), http.StatusHTTPVersionNotSupported)
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Time{})
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", streamProtocol); err != nil {
		return
	}
	// Whichever side ends, the other has nobody left to speak to.
	ended := make(chan struct{}, 2)
	pass := func(to io.Writer, from io.Reader) {
		_, _ = io.Copy(to, from)
		ended <- struct{}{}
	}
	go pass(stream, buffered.Reader)
	go pass(conn, stream)
	<-ended
}

// Through opens a stream to a node through another server, which must have its
// tunnel; the error is a *NotConnectedError if it has not. config is what that
// server knows this one by.
func Through(ctx context.Context, config *tls.Config, serverURL, node string) (net.Conn, error) {
	fail := func(err error) (net.Conn, error) {
		return nil, fmt.Errorf("cannot reach node %q through the server at %s: %w", node, serverURL, err)
	}
	u, err := url.Parse(serverURL)
	if err != nil {
		return fail(err)
	}
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"} // an upgrade is a thing of HTTP/1.1
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: askTime}, Config: config}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return fail(err)
	}
	_ = conn.SetDeadline(time.Now().Add(askTime))
	_, err = fmt.Fprintf(conn, "GET %s%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", StreamPath, url.PathEscape(node), u.Host, streamProtocol)
	var resp *http.Response
	reader := bufio.NewReader(conn)
	if err == nil {
		resp, err = http.ReadResponse(reader, nil)
	}
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		if err = fmt.Errorf("it answers %s: %s", resp.Status, strings.TrimSpace(string(body))); resp.StatusCode == http.StatusNotFound {
			err = &NotConnectedError{Node: node}
		}
	}
	if err != nil {
		_ = conn.Close()
		return fail(err)
	}
	_ = conn.SetDeadline(time.Time{})
	return bufferedConn{conn, reader}, nil
}
