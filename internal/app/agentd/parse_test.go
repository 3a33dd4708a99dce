package agentd

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const aKubeconfig = `{apiVersion: v1, kind: Config, current-context: c,
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443"}}],
contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {token: t}}]}`

func TestFlags(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(aKubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"--server https://127.0.0.1:1":                                 "taints [] ip 127.0.0.1",
		"--kubeconfig FILE":                                            "taints [legion.dev/host:NoSchedule] ip 127.0.0.1",
		"--bootstrap-kubeconfig FILE --node-ip 127.0.0.9":              "taints [legion.dev/host:NoSchedule] ip 127.0.0.9",
		"--kubeconfig FILE --taints=":                                  "taints [] ip 127.0.0.1",
		"--kubeconfig FILE --taints a=b:NoExecute,c:PreferNoSchedule":  "taints [a=b:NoExecute c:PreferNoSchedule] ip 127.0.0.1",
		"--kubeconfig FILE --taints a=b":                               `--taints: "a=b" is not of the form`,
		"--kubeconfig FILE --eviction-hard disk<5%":                    "--eviction-hard: \"disk<5%\" is not of the form",
		"--kubeconfig FILE --taints a:Never":                           `--taints: "a:Never" is not of the form`,
		"--kubeconfig FILE.missing":                                    "cannot use the kubeconfig",
		"--kubeconfig FILE --bootstrap-kubeconfig FILE":                "in one way",
		"--kubeconfig FILE --token x":                                  "in one way",
		"--bootstrap-kubeconfig FILE --token x --node-ip 127.0.0.9":    "in one way",
		"--kubeconfig FILE --client-ca-file FILE --tls-cert-file FILE": "a certificate needs its key",
	} {
		o, _, err := parse(strings.Fields("--node n1 --dir d "+strings.ReplaceAll(args, "FILE", file)), io.Discard)
		var taints []string
		for _, taint := range o.Taints {
			taints = append(taints, taint.ToString())
		}
		got := "taints [" + strings.Join(taints, " ") + "] ip " + o.NodeIP
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != want || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", args, got, want)
		}
	}
}
