package probe

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"legion.dev/legion/internal/service"
)

// TestGRPC asks servers of the real library.
func TestGRPC(t *testing.T) {
	serve := func(register func(*grpc.Server)) int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		go func() { _ = s.Serve(l) }()
		t.Cleanup(s.Stop)
		return l.Addr().(*net.TCPAddr).Port
	}
	state := health.NewServer()
	state.SetServingStatus("", grpc_health_v1.HealthCheckResponse_SERVING)
	state.SetServingStatus("db", grpc_health_v1.HealthCheckResponse_SERVING)
	state.SetServingStatus("queue", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	healthy := serve(func(s *grpc.Server) { grpc_health_v1.RegisterHealthServer(s, state) })
	without := serve(func(*grpc.Server) {})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()

	for name, test := range map[string]struct {
		port    int
		service string
		want    string // empty is well
	}{
		"whole server":    {healthy, "", ""},
		"service":         {healthy, "db", ""},
		"long name":       {healthy, strings.Repeat("x", 300), "does not know the service"},
		"not serving":     {healthy, "queue", `responded with "NOT_SERVING"`},
		"unknown service": {healthy, "cache", `does not know the service "cache"`},
		"no protocol":     {without, "", "does not implement the grpc health protocol"},
		"no server":       {closed.Addr().(*net.TCPAddr).Port, "", "connection refused"},
		"no answer":       {silent.Addr().(*net.TCPAddr).Port, "", "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &service.Probe{GRPC: &service.GRPCProbe{Port: test.port, Service: test.service}, Timeout: time.Minute}
			if name == "no answer" {
				p.Timeout = 50 * time.Millisecond
			}
			ok, message := Run(context.Background(), p, nil)
			if ok != (test.want == "") || !strings.Contains(message, test.want) {
				t.Errorf("%v %q, want %q", ok, message, test.want)
			}
		})
	}
}

func TestHealthStatus(t *testing.T) {
	for body, want := range map[string]string{
		"\x00\x00\x00\x00\x00":                             "UNKNOWN",
		"\x00\x00\x00\x00\x02\x08\x01":                     "SERVING",
		"\x00\x00\x00\x00\x06\x12\x02hi\x08\x02":           "NOT_SERVING",
		"\x00\x00\x00\x00\x02\x08\x09":                     "9",
		"":                                                 "bad",
		"\x01\x00\x00\x00\x00":                             "bad",
		"\x00\x00\x00\x00\x03\x08\x01":                     "bad",
		"\x00\x00\x00\x00\x02\x0d\x01":                     "bad",
		"\x00\x00\x00\x00\x03\x12\x7fh":                    "bad",
		"\x00\x00\x00\x00\x01\x08":                         "bad",
		"\x00\x00\x00\x00\x01\x80":                         "bad",
		"\x00\xff\xff\xff\xff\x08\x01\x08\x01\x08\x01\x08": "bad",
	} {
		got, err := healthStatus([]byte(body))
		if err != nil {
			got = "bad"
		}
		if got != want {
			t.Errorf("%x is %s, want %s", body, got, want)
		}
	}
}
