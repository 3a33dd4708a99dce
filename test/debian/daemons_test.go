package debian

import (
	"errors"
	"net/http"
	"os"
	"testing"
)

// daemons is the table: a package, its unit and its protocol.
var daemons = []daemon{
	{unit: "redis-server.service", packages: []string{"redis-server"}, ask: lineTalk("tcp", "127.0.0.1:6379",
		turn{"PING\r\n", "+PONG"}, turn{"SET daemon legion\r\n", "+OK"}, turn{"GET daemon\r\n", "legion"})},
	{unit: "memcached.service", packages: []string{"memcached"}, ask: lineTalk("tcp", "127.0.0.1:11211",
		turn{"set daemon 0 0 6\r\nlegion\r\n", "STORED"}, turn{"get daemon\r\n", "legion"})},
	{unit: "nginx.service", packages: []string{"nginx-light"}, ask: page("http://127.0.0.1/", http.StatusOK, "nginx")},
	{unit: "mosquitto.service", packages: []string{"mosquitto"}, ask: bytesTalk("tcp", "127.0.0.1:1883",
		// CONNECT and CONNACK, SUBSCRIBE to "a" and SUBACK, PUBLISH of "hi" to "a" and the same back.
		[]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c"), []byte("\x20\x02\x00\x00"),
		[]byte("\x82\x06\x00\x01\x00\x01a\x00"), []byte("\x90\x03\x00\x01\x00"),
		[]byte("\x30\x05\x00\x01ahi"), []byte("\x30\x05\x00\x01ahi"))},
	{unit: "vsftpd.service", packages: []string{"vsftpd"}, ask: lineTalk("tcp", "127.0.0.1:21", turn{"", "220 "}, turn{"FEAT\r\n", "211 "})},
	{unit: "cron.service", packages: []string{"cron"}, prepare: cronTable, ask: cronFired, again: cronAgain},
	{unit: "prometheus-node-exporter.service", packages: []string{"prometheus-node-exporter"}, noReload: "it ends on SIGHUP, which its ExecReload= sends", ask: page("http://127.0.0.1:9100/metrics", http.StatusOK, "node_cpu_seconds_total")},
	{unit: "haproxy.service", packages: []string{"haproxy"}, ask: lineTalk("unix", "/run/haproxy/admin.sock", turn{"show info\n", "Name: HAProxy"})},
	{unit: "dnsmasq.service", packages: []string{"dnsmasq"}, ask: resolve("127.0.0.1:53", "legion-e2e.", [4]byte{127, 0, 0, 1})},
	{unit: "avahi-daemon.service", packages: []string{"avahi-daemon"}, ask: busCall("org.freedesktop.Avahi", "/", "org.freedesktop.Avahi.Server.GetHostName", "legion-e2e")},
	{unit: "lighttpd.service", packages: []string{"lighttpd"}, set: 1, prepare: lighttpdPage, ask: page("http://127.0.0.1/legion.txt", http.StatusOK, "served by lighttpd")},
	{unit: "unbound.service", packages: []string{"unbound", "dns-root-data"}, set: 1, ask: resolve("127.0.0.1:53", "localhost.", [4]byte{127, 0, 0, 1})},
	{unit: "apache2.service", packages: []string{"apache2"}, set: 2, ask: page("http://127.0.0.1/", http.StatusOK, "<html")},
}

// cronTable has a job of each of cron's starts.
func cronTable(t *testing.T, m *machine) {
	m.write(t, "/etc/cron.d/legion", "@reboot root echo done >>/run/cron-fired\n")
	cronAgain(t, m)
}

// cronFired: the job has run.
func cronFired(_ *testing.T, m *machine) error {
	_, err := os.Stat(m.path("/run/cron-fired"))
	return err
}

// cronAgain takes cron's note of its first start away, and the job's.
func cronAgain(t *testing.T, m *machine) {
	for _, name := range []string{"/run/crond.reboot", "/run/cron-fired"} {
		if err := os.Remove(m.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

// lighttpdPage: the directory that nginx has left has no index for lighttpd.
func lighttpdPage(t *testing.T, m *machine) {
	m.write(t, "/var/www/html/legion.txt", "served by lighttpd\n")
}
