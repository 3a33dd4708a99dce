package tunnel

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// NotConnectedError says that a node has no tunnel.
type NotConnectedError struct {
	// Node is the node's name.
	Node string
}

func (e *NotConnectedError) Error() string {
	return fmt.Sprintf("node %q is not connected to the server: its agent has no tunnel open (is legion-agent running there, and does it reach the server?)", e.Node)
}

// Sessions are the tunnels that agents hold open to this server. The zero value
// is ready.
type Sessions struct {
	// Elsewhere, if set, opens a stream to a node whose tunnel another server
	// has. The error is a *NotConnectedError if none has it.
	Elsewhere func(ctx context.Context, node string) (net.Conn, error)

	mu     sync.Mutex
	byNode map[string]*yamux.Session
	closed bool
}

// Accept turns the request into the tunnel of node and returns when that tunnel
// is gone. A node has one tunnel: the newest.
func (s *Sessions) Accept(w http.ResponseWriter, r *http.Request, node string) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), Protocol) {
		w.Header().Set("Upgrade", Protocol)
		http.Error(w, "this path only takes tunnels: the header Upgrade: "+Protocol+" is missing", http.StatusUpgradeRequired)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "cannot turn this connection into a tunnel, ask by HTTP/1.1: "+err.Error(), http.StatusHTTPVersionNotSupported)
		return
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Time{})
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Protocol); err != nil {
		return
	}
	session, err := yamux.Client(bufferedConn{conn, buffered.Reader}, settings())
	if err != nil {
		return
	}
	defer func() { _ = session.Close() }()
	if !s.add(node, session) {
		return
	}
	<-session.CloseChan()
	s.remove(node, session)
}

func (s *Sessions) add(node string, session *yamux.Session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.byNode == nil {
		s.byNode = map[string]*yamux.Session{}
	}
	if old := s.byNode[node]; old != nil {
		go func() { _ = old.Close() }()
	}
	s.byNode[node] = session
	return true
}

func (s *Sessions) remove(node string, session *yamux.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byNode[node] == session {
		delete(s.byNode, node)
	}
}

// Dial opens a stream to the node's agent, through another server where that
// has the tunnel. The error is a *NotConnectedError if there is none.
func (s *Sessions) Dial(ctx context.Context, node string) (net.Conn, error) {
	if s.Elsewhere != nil && !s.Connected(node) {
		return s.Elsewhere(ctx, node)
	}
	return s.dialHere(node)
}

// dialHere opens a stream through the tunnel that the node has to this server.
func (s *Sessions) dialHere(node string) (net.Conn, error) {
	s.mu.Lock()
	session := s.byNode[node]
	s.mu.Unlock()
	if session == nil {
		return nil, &NotConnectedError{Node: node}
	}
	conn, err := session.Open()
	if err != nil {
		return nil, fmt.Errorf("cannot reach node %q through its tunnel: %w", node, err)
	}
	return conn, nil
}

// Drop ends the tunnel of a node, if there is one.
func (s *Sessions) Drop(node string) {
	s.mu.Lock()
	session := s.byNode[node]
	s.mu.Unlock()
	if session != nil {
		_ = session.Close() // who serves it removes it
	}
}

// Reaches tells whether the node has a tunnel, to this server or another.
func (s *Sessions) Reaches(ctx context.Context, node string) bool {
	if s.Elsewhere == nil || s.Connected(node) {
		return s.Connected(node)
	}
	conn, err := s.Elsewhere(ctx, node)
	if err == nil {
		_ = conn.Close()
	}
	return err == nil
}

// Connected tells whether the node has a tunnel to this server.
func (s *Sessions) Connected(node string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byNode[node] != nil
}

// Transport speaks HTTP with the node's agent, whatever address the URL names.
func (s *Sessions) Transport(node string) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.Dial(ctx, node)
		},
		// A stream costs nothing to open; an idle one would outlive its tunnel.
		DisableKeepAlives:  true,
		DisableCompression: true,
	}
}

// Close ends all tunnels and takes no more.
func (s *Sessions) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, session := range s.byNode {
		go func() { _ = session.Close() }()
	}
}

// bufferedConn reads what arrived with the request first.
type bufferedConn struct {
	net.Conn
	reader *bufio.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.reader.Read(p) }
