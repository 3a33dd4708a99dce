package agentd

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	fleets "legion.dev/legion/internal/fleet"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/token"
)

// TestJoin: `legion join` makes a host a node, once, and at each boot again.
func TestJoin(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a server, a legiond and an agent")
	}
	f := newFleet(t)
	agent := f.path("legion-agent.sh")
	script := fmt.Sprintf("#!/bin/sh\n%s=legion-agent exec %s \"$@\"\n", programVariable, os.Args[0])
	if err := os.WriteFile(agent, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	join := func(line, node string) error {
		t.Helper()
		parsed, err := token.ParseLine(line)
		if err != nil {
			t.Fatal(err)
		}
		progress := fleets.NewProgress(io.Discard, false)
		defer progress.Close()
		j := fleets.Joining{
			Line: parsed, Node: node, NodeIP: "127.77.9.11", Labels: "zone=a", Socket: f.path("node/host.sock"),
			Dir: f.path("agent"), Agent: agent, Timeout: limit, Progress: progress,
		}
		return j.Run(f.ctx)
	}
	good := f.token("--labels", "tier=edge")
	id, rest, _ := strings.Cut(strings.TrimPrefix(good, token.Prefix+"."), ".")
	ca := rest[17 : 17+64]
	for name, test := range map[string]struct{ line, node, want string }{
		"unknown":   {token.Prefix + ".zzzzzz." + rest, "n1", "does not know the join token"},
		"wrong":     {token.Prefix + "." + id + "." + strings.Repeat("z", 16) + rest[16:], "n1", "its secret part does not match"},
		"ended":     {f.token("--ttl", "1ns"), "n1", "ended at"},
		"other CA":  {strings.Replace(good, ca, flip(ca), 1), "n1", "signed by another CA"},
		"bad name":  {good, "No_Name", "cannot be a node's name"},
		"no server": {strings.Replace(good, f.url, "https://127.0.0.1:1", 1), "n1", "connection refused"},
	} {
		if err := join(test.line, test.node); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	if _, err := os.Stat(f.path("agent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused join leaves %v", err)
	}
	if err := join(good, "n1"); err != nil {
		t.Fatal(err)
	}
	node := f.node(func(*v1.Node) bool { return true })
	if !nodeReady(node) || node.Labels["tier"] != "edge" || node.Labels["zone"] != "a" {
		t.Errorf("the node: %v, %+v", node.Labels, node.Status.Conditions)
	}
	if err := join(good, "n1"); err == nil || !strings.Contains(err.Error(), "this host is a node already") {
		t.Errorf("once more: %v", err)
	}
	f.create("web", named, "sh", "-c", forever)
	f.pod("web", ready)

	f.end("legiond", syscall.SIGTERM)
	f.legiond()
	running := errors.New("running")
	ctx, cancel := context.WithTimeout(f.ctx, limit)
	defer cancel()
	err := f.host.Watch(ctx, func(e hostapi.Event) error {
		if e.Name == "legion-agent.service" && e.Group != nil && e.Group.Status.Services[0].State == service.Running {
			return running
		}
		return nil
	})
	if !errors.Is(err, running) {
		t.Errorf("the agent after a boot: %v", err)
	}
	f.pod("web", func(p *v1.Pod) bool { return ready(p) && p.Status.ContainerStatuses[0].RestartCount == 1 })
	f.comesBack(t, join)
}

// comesBack: a node whose certificate has expired joins again, as itself, and
// its pods run on; nobody else does in its place.
func (f *fleet) comesBack(t *testing.T, join func(line, node string) error) {
	pod := f.pod("web", ready)
	pid := f.pid(pod)
	f.end("legion-server", syscall.SIGTERM)
	f.expire(t)
	f.server()
	if err := join(f.token(), "n2"); err == nil || !strings.Contains(err.Error(), `holds the certificate of "system:node:n1"`) {
		t.Errorf("another node in its place: %v", err)
	}
	if err := join(f.token("--ttl", "1ns"), "n1"); err == nil || !strings.Contains(err.Error(), "ended at") {
		t.Errorf("with a token that has ended: %v", err)
	}
	// An agent that starts without a token says what to do.
	cmd := exec.CommandContext(f.ctx, os.Args[0], f.agentArgs()...)
	cmd.Env = append(os.Environ(), programVariable+"=legion-agent")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "expired on") || !strings.Contains(string(out), "legion join LINE") {
		t.Errorf("an agent without a token: %v: %s", err, out)
	}
	if err := join(f.token(), "n1"); err != nil {
		t.Fatal(err)
	}
	f.create("after", named, "sh", "-c", forever)
	f.pod("after", ready)
	if now := f.pod("web", ready); now.UID != pod.UID || now.Status.ContainerStatuses[0].RestartCount != 1 || f.pid(now) != pid {
		t.Errorf("the pod was touched: process %d, now %d: %+v", pid, f.pid(now), now.Status)
	}
	if err := join(f.token(), "n1"); err == nil || !strings.Contains(err.Error(), "this host is a node already") {
		t.Errorf("once more: %v", err)
	}
}

// expired: an agent that starts with a certificate that has expired uses the
// token that it is given, and its pods run on.
func (f *fleet) expired(t *testing.T, pod *v1.Pod) {
	pid := f.pid(pod)
	f.end("legion-agent", syscall.SIGTERM)
	f.end("legion-server", syscall.SIGTERM)
	f.expire(t)
	f.server()
	f.agent("--token", f.token())
	f.create("rejoined", named, "sh", "-c", forever)
	f.pod("rejoined", ready)
	if now := f.pid(pod); now != pid {
		t.Errorf("the pod's process was %d, and is %d", pid, now)
	}
	f.delete("rejoined")
}

// expire puts a certificate in place of the agent's that is the same but for
// its end, which was an hour ago.
func (f *fleet) expire(t *testing.T) {
	t.Helper()
	decode := func(path string) []byte {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		return block.Bytes
	}
	keys := f.path("server/server/pki")
	ca, err := x509.ParseCertificate(decode(filepath.Join(keys, "ca.crt")))
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParseECPrivateKey(decode(filepath.Join(keys, "ca.key")))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(f.path("agent"), pki.CertFile)
	cert, err := x509.ParseCertificate(decode(path))
	if err != nil {
		t.Fatal(err)
	}
	cert.NotBefore, cert.NotAfter = time.Now().Add(-25*time.Hour), time.Now().Add(-time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, cert, ca, cert.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
