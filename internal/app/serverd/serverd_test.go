package serverd

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestKubectlArguments(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	t.Setenv("LEGION_DIR", t.TempDir())
	for _, test := range []struct {
		args string
		done bool
	}{
		{"kubectl get pods", true},
		{"--dir /no/fleet kubectl get pods", true},
		{"--dir=/no/fleet kubectl get pods", true},
		{"--dir /no/fleet", false},
		{"token create", false},
		{"--port 1 kubectl", false},
		{"", false},
	} {
		// No fleet is there, so that kubectl itself never runs.
		status, done := tryKubectl(strings.Fields(test.args))
		if done != test.done || done && status != 1 {
			t.Errorf("%q: %d, %t", test.args, status, done)
		}
	}
	for args, want := range map[string]bool{
		"get pods": false, "get pods -s https://x": true, "--kubeconfig=f get pods": true, "help": true, "version --client": true, "": true,
	} {
		if got := namesServer(strings.Fields(args)); got != want {
			t.Errorf("namesServer(%q) = %t", args, got)
		}
	}
}

func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	t.Setenv("NOTIFY_SOCKET", path)
	notify := notifier()
	if os.Getenv("NOTIFY_SOCKET") != "" {
		t.Error("the API server's library would see NOTIFY_SOCKET")
	}
	if err := notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	if err := notifier()("READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

func TestCommandErrors(t *testing.T) {
	empty := t.TempDir()
	for _, test := range []struct{ args, want string }{
		{"--listen-netns nonsense", "PATH=IP"},
		{"token create --dir " + empty, "no fleet found"},
		{"token create --ttl -1s --dir " + empty, "cannot end before it begins"},
		{"nonsense", "unknown command"},
	} {
		var out bytes.Buffer
		root := command(&out, &out)
		root.SetArgs(strings.Fields(test.args))
		if err := root.Execute(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
}
