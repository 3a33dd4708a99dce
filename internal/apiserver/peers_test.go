package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/token"
	"legion.dev/legion/internal/tunnel"
)

// logsOf reads the log of the pod talker through a server.
func logsOf(ctx context.Context, f *fleet) error {
	stream, err := f.admin.CoreV1().Pods("default").GetLogs("talker", &corev1.PodLogOptions{}).Stream(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	if text, err := io.ReadAll(stream); err != nil || string(text) != "a line\n" {
		return fmt.Errorf("got %q, %w", text, err)
	}
	return nil
}

// A node's tunnel is at one of two servers; it is reached through both.
func TestTunnelAtAnotherServer(t *testing.T) {
	etcd := must[*ownEtcd](t)(startEtcd(t.Context(), t.TempDir(), nil))
	t.Cleanup(etcd.stop)
	config := func(dir string) Config {
		return Config{Dir: dir, Listen: "127.0.0.1", EtcdServers: []string{etcd.endpoint}}
	}
	first := startWith(t, config(t.TempDir()))
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "server", "pki"), os.DirFS(filepath.Join(first.dir, "server", "pki"))); err != nil {
		t.Fatal(err)
	}
	second := startWith(t, config(dir))
	first.awaitAccount(t, "default")
	must[*corev1.Pod](t)(first.admin.CoreV1().Pods("default").Create(t.Context(), pod("talker", "n3", ""), metav1.CreateOptions{}))
	nowhere := func() {
		t.Helper()
		for _, f := range []*fleet{first, second} {
			if err := logsOf(t.Context(), f); !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), `node "n3" is not connected`) {
				t.Errorf("logs without a tunnel: %v", err)
			}
		}
	}
	nowhere()

	_, node := first.join(t, "n3")
	transport := must[*http.Transport](t)(transport(node))
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		tunnel.Keep(ctx, transport.TLSClientConfig, first.url, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintln(w, "a line")
		}), nil, nil)
	}()
	eventually(t, "logs through the server that has the tunnel", func() error { return logsOf(t.Context(), first) })
	eventually(t, "logs through the other one", func() error { return logsOf(t.Context(), second) })

	// It counts as connected there, too.
	good := must[token.Token](t)(CreateToken(t.Context(), second.admin, second.config.CAData, NewToken{Life: time.Hour}))
	taken := (*pki.TakenError)(nil)
	if _, err := pki.Join(t.Context(), second.url, good.String(), "n3"); !errors.As(err, &taken) {
		t.Errorf("the name can be taken: %v", err)
	}
	// Streams are for servers.
	request := must[*http.Request](t)(http.NewRequestWithContext(t.Context(), http.MethodGet, second.url+tunnel.StreamPath+"n3", nil))
	response := must[*http.Response](t)(transport.RoundTrip(request))
	_ = response.Body.Close()
	if response.StatusCode != http.StatusForbidden {
		t.Errorf("a node asks for a stream to a node: %s", response.Status)
	}
	leave()
	<-left
	eventually(t, "the end of the tunnel", func() error {
		if logsOf(t.Context(), first) == nil {
			return errors.New("it is still there")
		}
		return nil
	})
	nowhere()
}
