package debian

import (
	"net/http"
	"testing"
)

// daemons is the table: a unit, its packages and its protocol.
var daemons = []daemon{
	// Stores and brokers.
	{unit: "redis-server.service", packages: []string{"redis-server"}, ask: lineTalk("tcp", "127.0.0.1:6379",
		turn{"PING\r\n", "+PONG"}, turn{"SET daemon legion\r\n", "+OK"}, turn{"GET daemon\r\n", "legion"})},
	{unit: "memcached.service", packages: []string{"memcached"}, ask: lineTalk("tcp", "127.0.0.1:11211",
		turn{"set daemon 0 0 6\r\nlegion\r\n", "STORED"}, turn{"get daemon\r\n", "legion"})},
	{
		unit: "postgresql@15-main.service", packages: []string{"postgresql", "postgresql-15", "postgresql-common"}, ask: command("42", "runuser", "-u", "postgres", "--", "psql", "-Atc", "select 6*7"),
		idle: "where it was installed before, its cluster is left as it is",
	},
	{unit: "mariadb.service", packages: []string{"mariadb-server"}, ask: command("42", "mariadb", "-Nse", "select 6*7")},
	{unit: "mosquitto.service", packages: []string{"mosquitto"}, ask: bytesTalk("tcp", "127.0.0.1:1883",
		// CONNECT and CONNACK, SUBSCRIBE to "a" and SUBACK, PUBLISH of "hi" to "a" and the same back.
		[]byte("\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c"), []byte("\x20\x02\x00\x00"),
		[]byte("\x82\x06\x00\x01\x00\x01a\x00"), []byte("\x90\x03\x00\x01\x00"),
		[]byte("\x30\x05\x00\x01ahi"), []byte("\x30\x05\x00\x01ahi"))},
	{unit: "beanstalkd.service", packages: []string{"beanstalkd"}, ask: lineTalk("tcp", "127.0.0.1:11300",
		turn{"put 0 0 60 6\r\nlegion\r\n", "INSERTED"}, turn{"reserve\r\n", "legion"})},
	{unit: "rabbitmq-server.service", packages: []string{"rabbitmq-server"}, ask: queued},

	// The web, and what stands before it.
	{unit: "nginx.service", packages: []string{"nginx-light"}, ask: page("http://127.0.0.1/", http.StatusOK, "nginx")},
	{
		unit: "lighttpd.service", packages: []string{"lighttpd"}, set: 1, prepare: file("/var/www/html/legion.txt", "served by lighttpd\n"), stopMayFail: "a SIGTERM while it restarts itself, as its reload has it do, ends it with status 255",
		ask: page("http://127.0.0.1/legion.txt", http.StatusOK, "served by lighttpd"),
	},
	{unit: "apache2.service", packages: []string{"apache2"}, set: 2, ask: page("http://127.0.0.1/", http.StatusOK, "<html")},
	{unit: "haproxy.service", packages: []string{"haproxy"}, ask: lineTalk("unix", "/run/haproxy/admin.sock", turn{"show info\n", "Name: HAProxy"})},
	{unit: "varnish.service", packages: []string{"varnish"}, prepare: origin, stopMayFail: "its manager ends with status 64 where its child was ended by the SIGTERM first", ask: page("http://127.0.0.1:6081/", http.StatusOK, "from the origin")},
	{unit: "squid.service", packages: []string{"squid"}, before: file("/etc/squid/conf.d/legion.conf", "shutdown_lifetime 1 second\n"), prepare: origin, ask: proxied("127.0.0.1:3128")},
	{unit: "tinyproxy.service", packages: []string{"tinyproxy"}, prepare: origin, ask: proxied("127.0.0.1:8888")},
	{unit: "stunnel@legion.service", packages: []string{"stunnel4"}, prepare: tunnel, ask: tunnelled, idle: "it is an instance that nobody has asked for"},

	// Names, mail, files, logins.
	{unit: "dnsmasq.service", packages: []string{"dnsmasq"}, ask: resolve("127.0.0.1:53", "legion-e2e.", [4]byte{127, 0, 0, 1})},
	{unit: "unbound.service", packages: []string{"unbound", "dns-root-data"}, set: 1, ask: resolve("127.0.0.1:53", "localhost.", [4]byte{127, 0, 0, 1})},
	{unit: "named.service", packages: []string{"bind9"}, set: 2, ask: resolve("127.0.0.1:53", "localhost.", [4]byte{127, 0, 0, 1})},
	{unit: "exim4.service", packages: []string{"exim4-daemon-light"}, notAsUser: "postfix has taken its place", ask: lineTalk("tcp", "127.0.0.1:25", turn{"", "Exim"}, turn{"EHLO legion\r\n", "250 HELP"})},
	{unit: "postfix@-.service", packages: []string{"postfix"}, set: 1, ask: lineTalk("tcp", "127.0.0.1:25", turn{"", "ESMTP Postfix"}, turn{"EHLO legion\r\n", "250 CHUNKING"})},
	{unit: "dovecot.service", packages: []string{"dovecot-imapd"}, ask: lineTalk("tcp", "127.0.0.1:143", turn{"", "* OK"}, turn{"a CAPABILITY\r\n", "a OK"})},
	{unit: "vsftpd.service", packages: []string{"vsftpd"}, ask: lineTalk("tcp", "127.0.0.1:21", turn{"", "220 "}, turn{"FEAT\r\n", "211 "})},
	{unit: "ssh.service", packages: []string{"openssh-server", "openssh-client"}, prepare: login, ask: command("legion", "ssh", "-F", "/dev/null", "-i", "/root/legion-key",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "legion@127.0.0.1", "id", "-un")},
	{unit: "ngircd.service", packages: []string{"ngircd"}, ask: lineTalk("tcp", "127.0.0.1:6667", turn{"NICK daemon\r\nUSER daemon 0 * :daemon\r\n", " 001 daemon "})},

	// What looks after the machine.
	{unit: "cron.service", packages: []string{"cron"}, prepare: cronTable, ask: exists("/run/cron-fired"), again: cronAgain},
	{unit: "atd.service", packages: []string{"at"}, ask: atFired, again: removed("/run/at-fired")},
	{unit: "rsyslog.service", packages: []string{"rsyslog"}, with: []string{"syslog.socket"}, ask: logged},
	{unit: "dbus.service", packages: []string{"dbus"}, with: []string{"dbus.socket"}, ask: busCall("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus.GetId", "")},
	{unit: "avahi-daemon.service", packages: []string{"avahi-daemon"}, with: []string{"avahi-daemon.socket"}, ask: busCall("org.freedesktop.Avahi", "/", "org.freedesktop.Avahi.Server.GetHostName", "legion-e2e")},
	{unit: "snmpd.service", packages: []string{"snmpd"}, ask: snmpGet},
	{
		unit: "prometheus-node-exporter.service", packages: []string{"prometheus-node-exporter"}, noReload: "it ends on SIGHUP, which its ExecReload= sends",
		ask: page("http://127.0.0.1:9100/metrics", http.StatusOK, "node_cpu_seconds_total"),
	},
	{unit: "cups.service", packages: []string{"cups-daemon"}, with: []string{"cups.socket", "cups.path"}, ask: printers},
	{unit: "rpcbind.service", packages: []string{"rpcbind"}, with: []string{"rpcbind.socket"}, ask: bytesTalk("udp", "127.0.0.1:111", rpcCall(100000, 2), rpcSuccess)},
}

// file prepares with a file.
func file(name, text string) func(*testing.T, *machine) {
	return func(t *testing.T, m *machine) { m.write(t, name, text) }
}
