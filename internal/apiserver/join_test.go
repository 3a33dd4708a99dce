package apiserver

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/token"
	"legion.dev/legion/internal/tunnel"
)

func testJoinRefusals(t *testing.T, f *fleet) {
	good := must[token.Token](t)(CreateToken(t.Context(), f.admin, f.config.CAData, NewToken{Life: time.Hour}))
	ended := must[token.Token](t)(CreateToken(t.Context(), f.admin, f.config.CAData, NewToken{Life: time.Nanosecond}))
	unknown, wrong, other := good, good, good
	unknown.ID = "zzzzzz"
	wrong.Secret = strings.Repeat("z", 16)
	other.CA = strings.Repeat("0", 64)
	// Past the second in which it ended.
	eventually(t, "the end of a token", func() error {
		_, err := pki.Join(t.Context(), f.url, ended.String(), "n9")
		if err == nil || !strings.Contains(err.Error(), "ended at") {
			return fmt.Errorf("an ended token: %w", err)
		}
		return nil
	})
	for _, test := range []struct{ token, node, want string }{
		{unknown.String(), "n9", "does not know the join token zzzzzz"},
		{wrong.String(), "n9", "its secret part does not match"},
		{other.String(), "n9", "signed by another CA"},
		{"rubbish", "n9", "not a join token"},
		{good.String(), "No Name", "cannot be a node's name"},
	} {
		if _, err := pki.Join(t.Context(), f.url, test.token, test.node); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("joining as %q with %.20s…: %v, want %q", test.node, test.token, err, test.want)
		}
	}
}

// testJoinOnce: a token that is good for one node is good for no second one, and
// gives its labels; the same request may be sent again.
func testJoinOnce(t *testing.T, f *fleet) {
	once := must[token.Token](t)(CreateToken(t.Context(), f.admin, f.config.CAData, NewToken{Life: time.Hour, Uses: 1, Labels: map[string]string{"zone": "a", "tier": "edge"}}))
	request := must[*pki.Joining](t)(pki.NewJoin(once.String(), "n8"))
	for range 2 {
		got, err := request.Send(t.Context(), f.url)
		if err != nil || !maps.Equal(got.Labels, map[string]string{"zone": "a", "tier": "edge"}) {
			t.Errorf("labels %v, %v", got.Labels, err)
		}
	}
	for _, node := range []string{"n8", "n9"} {
		_, err := pki.Join(t.Context(), f.url, once.String(), node)
		var refused *pki.RefusedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), `was used already (by node "n8" at `) {
			t.Errorf("the second use, by %s: %v", node, err)
		}
	}
	for _, test := range []struct {
		wanted NewToken
		want   string
	}{
		{NewToken{Life: -1}, "cannot end before it begins"},
		{NewToken{Uses: -1}, "cannot be good for -1 nodes"},
		{NewToken{Labels: map[string]string{"a b": "c"}}, "cannot have these labels"},
		{NewToken{Labels: map[string]string{"node-restriction.kubernetes.io/a": "b"}}, "may not give itself the label"},
	} {
		if _, err := CreateToken(t.Context(), f.admin, f.config.CAData, test.wanted); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v, want %q", test.wanted, err, test.want)
		}
	}
}

func TestCheckClock(t *testing.T) {
	ours := time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)
	for off, want := range map[time.Duration]string{
		-time.Minute:         "",
		pki.ClockTolerance:   "",
		-2 * time.Hour:       "it says 2030-01-02T10:00:00Z and is 2h0m0s behind the server's",
		26 * time.Hour:       "it says 2030-01-03T14:00:00Z and is 26h0m0s ahead of the server's",
		-30 * 24 * time.Hour: "is 720h0m0s behind",
	} {
		err := checkClock(ours.Add(off), ours)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", off, err, want)
		}
	}
	if err := checkClock(time.Time{}, ours); err != nil {
		t.Errorf("a node that does not tell: %v", err)
	}
}

func testLogs(t *testing.T, f *fleet) {
	must[*corev1.Pod](t)(f.admin.CoreV1().Pods("default").Create(t.Context(), pod("talker", "n3", ""), metav1.CreateOptions{}))
	logs := func() error {
		stream, err := f.admin.CoreV1().Pods("default").GetLogs("talker", &corev1.PodLogOptions{TailLines: new(int64)}).Stream(t.Context())
		if err != nil {
			return err
		}
		defer func() { _ = stream.Close() }()
		text, err := io.ReadAll(stream)
		if err != nil {
			return err
		}
		if string(text) != "a line\n" {
			return fmt.Errorf("got %q", text)
		}
		return nil
	}
	if err := logs(); err == nil || !strings.Contains(err.Error(), `node "n3" is not connected`) {
		t.Errorf("logs without a tunnel: %v", err)
	}
	_, config := f.join(t, "n3")
	tls := must[*http.Transport](t)(transport(config))
	asked := make(chan string, 10)
	go tunnel.Keep(t.Context(), tls.TLSClientConfig, f.url, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.String()
		fmt.Fprintln(w, "a line")
	}), nil, nil)
	eventually(t, "logs through the tunnel", logs)
	if path := <-asked; !strings.HasPrefix(path, "/containerLogs/default/talker/main?") || !strings.Contains(path, "tailLines=0") {
		t.Errorf("the agent was asked for %s", path)
	}
	made := must[token.Token](t)(CreateToken(t.Context(), f.admin, f.config.CAData, NewToken{Life: time.Hour}))
	if _, err := pki.Join(t.Context(), f.url, made.String(), "n3"); err == nil || !strings.Contains(err.Error(), "is connected at this moment") {
		t.Errorf("taking the name of a connected node: %v", err)
	}
}

// transport is the TLS side of a client configuration.
func transport(config *rest.Config) (*http.Transport, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	return &http.Transport{TLSClientConfig: tlsConfig}, err
}

func TestParseNetnsAddress(t *testing.T) {
	got, err := ParseNetnsAddress("/run/netns/hub=10.1.2.1")
	if err != nil || got.Path != "/run/netns/hub" || !got.IP.Equal(net.IPv4(10, 1, 2, 1)) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, text := range []string{"", "/run/netns/hub", "=10.1.2.1", "/run/netns/hub=here"} {
		if _, err := ParseNetnsAddress(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// TestListenNetns reaches a listener that is inside another network namespace
// from there, and not from here.
func TestListenNetns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes network namespaces")
	}
	name := fmt.Sprintf("legion-test-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Skipf("cannot make a network namespace: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", name).Run() })
	if out, err := exec.Command("ip", "-n", name, "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	address := NetnsAddress{Path: "/run/netns/" + name, IP: net.IPv4(127, 0, 0, 1)}
	listener, err := listenNetns(address, 18443)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if here, err := net.Dial("tcp", "127.0.0.1:18443"); err == nil {
		_ = here.Close()
		t.Error("the listener is in this namespace")
	}
	out, err := exec.Command("ip", "netns", "exec", name, "ss", "-Hltn").CombinedOutput()
	if err != nil {
		t.Skipf("no ss to look with: %v", err)
	}
	if !strings.Contains(string(out), "127.0.0.1:18443") {
		t.Errorf("listening there: %s", out)
	}
	if _, err := listenNetns(NetnsAddress{Path: "/run/netns/none", IP: address.IP}, 1); err == nil || !strings.Contains(err.Error(), "/run/netns/none") {
		t.Errorf("no such namespace: %v", err)
	}
}
