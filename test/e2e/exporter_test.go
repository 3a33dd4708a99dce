package e2e

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// nodeExporter is Debian's prometheus-node-exporter on every node, on the
// host's own file system and each node's own address.
const nodeExporter = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node-exporter, namespace: default}
spec:
  selector: {matchLabels: {app: node-exporter}}
  template:
    metadata: {labels: {app: node-exporter}}
    spec:
      runtimeClassName: host
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 5
      containers:
      - name: exporter
        image: host
        command: [/usr/bin/prometheus-node-exporter]
        args: ["--web.listen-address=$(HOST_IP):9100", "--collector.disable-defaults", "--collector.loadavg", "--collector.uname", "--collector.meminfo"]
        env:
        - {name: HOST_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        ports: [{name: metrics, containerPort: 9100}]
        readinessProbe:
          httpGet: {path: /metrics, port: metrics}
          periodSeconds: 1
`

func TestDebianNodeExporterAsDaemonSet(t *testing.T) {
	f := shareFleet(t)
	if _, err := os.Stat("/usr/bin/prometheus-node-exporter"); err != nil {
		t.Skipf("prometheus-node-exporter is not installed: %v", err)
	}
	f.deploy(t, "node-exporter", nodeExporter)
	pods := f.pods(t, "node-exporter")
	if len(pods) != 3 {
		t.Fatalf("want a pod on each of 3 nodes, got %d", len(pods))
	}
	client := http.Client{Timeout: 5 * time.Second}
	for node, p := range pods {
		res, err := client.Get("http://" + p.Status.HostIP + ":9100/metrics")
		if err != nil {
			t.Errorf("%s: %v", node, err)
			continue
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), "\nnode_load1 ") {
			t.Errorf("%s: status %d, %v, %d bytes without node_load1", node, res.StatusCode, err, len(body))
		}
		// What the daemon writes is what kubectl logs shows.
		if out := f.kubectl(t, "logs", p.Name); !strings.Contains(out, "Listening on") {
			t.Errorf("%s: logs: %q", node, out)
		}
	}
}
