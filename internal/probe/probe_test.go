package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

func target(t *testing.T, s *httptest.Server, path string) *service.Probe {
	t.Helper()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	return &service.Probe{Timeout: 10 * time.Second, HTTP: &service.HTTPProbe{Scheme: u.Scheme, Port: port, Path: path}}
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != "a=b" || r.Header.Get("X-A") != "1" || r.Host != "example.org" || r.Header.Get("Accept") != "*/*" {
			t.Errorf("%v %v %v", r.URL, r.Host, r.Header)
		}
	})
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://other.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for _, s := range []*httptest.Server{httptest.NewServer(mux), httptest.NewTLSServer(mux)} {
		defer s.Close()
		p := target(t, s, "ok?a=b")
		p.HTTP.Headers = [][2]string{{"X-A", "1"}, {"Host", "example.org"}}
		if ok, m := Run(t.Context(), p, nil); !ok {
			t.Error(m)
		}
		for path, want := range map[string]string{"/bad": "HTTP probe failed with statuscode: 503", "/loop": "stopped after 10 redirects", "/none": "HTTP probe failed with statuscode: 404"} {
			if ok, m := Run(t.Context(), target(t, s, path), nil); ok || !strings.Contains(m, want) {
				t.Errorf("%s: %v %q", path, ok, m)
			}
		}
		if ok, m := Run(t.Context(), target(t, s, "/away"), nil); !ok {
			t.Error(m)
		}
		p = target(t, s, "/hang")
		p.Timeout = 20 * time.Millisecond
		if ok, m := Run(t.Context(), p, nil); ok || !strings.Contains(m, "deadline exceeded") {
			t.Errorf("%v %q", ok, m)
		}
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &service.Probe{TCP: &service.TCPProbe{Port: l.Addr().(*net.TCPAddr).Port}}
	if ok, m := Run(t.Context(), p, nil); !ok {
		t.Error(m)
	}
	l.Close()
	if ok, m := Run(t.Context(), p, nil); ok || !strings.Contains(m, "connection refused") {
		t.Errorf("%v %q", ok, m)
	}
}

func TestExec(t *testing.T) {
	p := &service.Probe{Exec: &service.Command{Path: "/bin/check"}, Timeout: 20 * time.Millisecond}
	for _, c := range []struct {
		run  Command
		ok   bool
		want string
	}{
		{func(context.Context, service.Command) (int, []byte, error) { return 0, nil, nil }, true, ""},
		{func(context.Context, service.Command) (int, []byte, error) { return 2, []byte("no disk\n"), nil }, false, "no disk"},
		{func(context.Context, service.Command) (int, []byte, error) { return 2, nil, nil }, false, `command "/bin/check" ended with status 2`},
		{func(context.Context, service.Command) (int, []byte, error) { return 0, nil, errors.New("cannot start") }, false, "cannot start"},
		{func(ctx context.Context, _ service.Command) (int, []byte, error) {
			<-ctx.Done()
			return 0, nil, ctx.Err()
		}, false, `command "/bin/check" timed out after 20ms`},
		{nil, false, "no command can be run here"},
	} {
		if ok, m := Run(t.Context(), p, c.run); ok != c.ok || m != c.want {
			t.Errorf("%v %q; want %v %q", ok, m, c.ok, c.want)
		}
	}
	if ok, _ := Run(t.Context(), &service.Probe{}, nil); ok {
		t.Error("an empty probe succeeds")
	}
}
