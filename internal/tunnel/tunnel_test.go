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
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// start runs a TLS server that offers HTTP/2 too, as the API server does, and
// takes each tunnel as that of the node in the header X-Node.
func start(t *testing.T) (*Sessions, *httptest.Server, *tls.Config) {
	t.Helper()
	sessions := &Sessions{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if node, ok := strings.CutPrefix(r.URL.Path, StreamPath); ok {
			sessions.Pass(w, r, node)
			return
		}
		if r.URL.Path != Path {
			http.Error(w, "no such page", http.StatusForbidden)
			return
		}
		sessions.Accept(w, r, "n1")
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() { sessions.Close(); server.Close() })
	return sessions, server, server.Client().Transport.(*http.Transport).TLSClientConfig
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came within 10 s")
		panic("unreachable")
	}
}

func get(t *testing.T, s *Sessions, path string) *http.Response {
	t.Helper()
	client := &http.Client{Transport: s.Transport("n1"), Timeout: 10 * time.Second}
	resp, err := client.Get("http://n1" + path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func TestStreamsThroughTheTunnel(t *testing.T) {
	sessions, server, config := start(t)
	next := make(chan string)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for {
			select {
			case line := <-next:
				fmt.Fprintln(w, line)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	opened := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Keep(ctx, config, server.URL, handler, func() { opened <- struct{}{} }, nil)
	}()
	receive(t, opened)
	waitConnected(t, sessions)
	resp := get(t, sessions, "/containerLogs/default/p/c?follow=true")
	lines := bufio.NewScanner(resp.Body)
	for _, want := range []string{"first", "second"} {
		next <- want
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("got %q (%v), want %q", lines.Text(), lines.Err(), want)
		}
	}
	cancel()
	receive(t, done)
}

// waitConnected waits for the server's end, which comes up a moment after the
// agent's.
func waitConnected(t *testing.T, s *Sessions) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !s.Connected("n1"); {
		if time.Now().After(deadline) {
			t.Fatal("no tunnel within 10 s")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestNewestTunnelWins(t *testing.T) {
	sessions, server, config := start(t)
	answer := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) })
	}
	first := make(chan error, 1)
	go func() { first <- Serve(t.Context(), config, server.URL, answer("old")) }()
	waitConnected(t, sessions)
	go func() { _ = Serve(t.Context(), config, server.URL, answer("new")) }()
	if err := receive(t, first); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Fatalf("the first tunnel ended with %v", err)
	}
	body, err := io.ReadAll(get(t, sessions, "/").Body)
	if err != nil || string(body) != "new" {
		t.Fatalf("got %q, %v", body, err)
	}
}

// A node whose tunnel another server has is reached through that one.
func TestThroughAnotherServer(t *testing.T) {
	there, server, config := start(t)
	here := &Sessions{Elsewhere: func(ctx context.Context, node string) (net.Conn, error) {
		return Through(ctx, config, server.URL, node)
	}}
	if here.Reaches(t.Context(), "n1") {
		t.Error("a node without a tunnel is reached")
	}
	var missing *NotConnectedError
	if _, err := here.Dial(t.Context(), "n1"); !errors.As(err, &missing) || missing.Node != "n1" {
		t.Errorf("a node without a tunnel: %v", err)
	}
	// Streams both ways, and the end of either side.
	ended := make(chan struct{}, 1)
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.(http.Flusher).Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan() && lines.Text() != "end"; {
			fmt.Fprintln(w, "echo", lines.Text())
			w.(http.Flusher).Flush()
		}
		ended <- struct{}{}
	})
	go func() { _ = Serve(t.Context(), config, server.URL, echo) }()
	waitConnected(t, there)
	if !here.Reaches(t.Context(), "n1") || here.Connected("n1") {
		t.Error("a node at another server is not reached, or counts as this one's")
	}
	for _, last := range []string{"end\n", ""} {
		input, say := io.Pipe()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://n1/", input)
		if err != nil {
			t.Fatal(err)
		}
		response, err := here.Transport("n1").RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(response.Body)
		for _, word := range []string{"one", "two"} {
			fmt.Fprintln(say, word)
			if !lines.Scan() || lines.Text() != "echo "+word {
				t.Fatalf("got %q (%v)", lines.Text(), lines.Err())
			}
		}
		if last != "" {
			_, _ = io.WriteString(say, last)
		} else {
			_ = response.Body.Close()
		}
		receive(t, ended)
		_ = say.Close()
		_ = response.Body.Close()
	}
	response, err := server.Client().Get(server.URL + StreamPath + "n1")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("a plain request: %s", response.Status)
	}
}

func TestRefusals(t *testing.T) {
	sessions, server, config := start(t)
	var missing *NotConnectedError
	if _, err := sessions.Dial(t.Context(), "n2"); !errors.As(err, &missing) || missing.Node != "n2" {
		t.Errorf("Dial without a tunnel: %v", err)
	}
	err := Serve(t.Context(), config, server.URL+"/elsewhere", http.NotFoundHandler())
	if err == nil || !strings.Contains(err.Error(), "403 Forbidden: no such page") {
		t.Errorf("a refused tunnel: %v", err)
	}
	err = Serve(t.Context(), &tls.Config{}, server.URL, http.NotFoundHandler())
	if err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown CA: %v", err)
	}
	resp, err := server.Client().Get(server.URL + Path)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("a plain request: %s", resp.Status)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, config, server.URL, http.NotFoundHandler()); err != nil {
		t.Errorf("an ended context: %v", err)
	}
}
