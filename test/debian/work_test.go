package debian

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// What single daemons need before they can work, and how to see that they do.

// exists sees the work in a file.
func exists(name string) func(*testing.T, *machine) error {
	return func(_ *testing.T, m *machine) error {
		_, err := os.Stat(m.path(name))
		return err
	}
}

// removed takes the signs of earlier work away.
func removed(names ...string) func(*testing.T, *machine) {
	return func(t *testing.T, m *machine) {
		for _, name := range names {
			if err := os.Remove(m.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
}

// cronTable has a job of each of cron's starts, of which cron keeps a note.
func cronTable(t *testing.T, m *machine) {
	m.write(t, "/etc/cron.d/legion", "@reboot root echo done >>/run/cron-fired\n")
	cronAgain(t, m)
}

func cronAgain(t *testing.T, m *machine) { removed("/run/crond.reboot", "/run/cron-fired")(t, m) }

// atFired gives atd a job, once, which must have run.
func atFired(t *testing.T, m *machine) error {
	err := exists("/run/at-fired")(t, m)
	if err != nil && !strings.Contains(m.run(t, "atq"), "a root") {
		m.run(t, "sh", "-c", "echo 'echo done >/run/at-fired' | at now")
	}
	return err
}

// logged says something on /dev/log, which must get into the file.
func logged(t *testing.T, m *machine) error {
	word := fmt.Sprintf("legion-%d", time.Now().UnixNano())
	m.run(t, "logger", "-p", "daemon.notice", "-t", "asked", word)
	for deadline := time.Now().Add(5 * time.Second); ; {
		data, err := os.ReadFile(m.path("/var/log/syslog"))
		if strings.Contains(string(data), "asked: "+word) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not in /var/log/syslog (%v): %.500s", word, err, data)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// login makes a user with a key.
func login(t *testing.T, m *machine) {
	m.run(t, "sh", "-ec", `id legion 2>/dev/null || useradd --create-home --shell /bin/sh --password '*' legion
rm -f /root/legion-key
ssh-keygen -q -t ed25519 -N '' -f /root/legion-key
install -D -m 600 -o legion -g legion /root/legion-key.pub /home/legion/.ssh/authorized_keys
chown legion: /home/legion/.ssh`)
}

// origin serves a page on port 8080, where varnish looks for it.
func origin(t *testing.T, m *machine) {
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "from the origin")
	})}
	l := m.listen(t, "127.0.0.1:8080")
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
}

// proxied asks a proxy for the page.
func proxied(proxy string) func(*testing.T, *machine) error {
	return func(_ *testing.T, m *machine) error {
		return m.page(proxy, "http://127.0.0.1:8080/", http.StatusOK, "from the origin")
	}
}

// tunnel is a stunnel before a server that greets.
func tunnel(t *testing.T, m *machine) {
	l := m.listen(t, "127.0.0.1:8081")
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello through the tunnel\n")
			_ = c.Close()
		}
	}()
	m.run(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=legion-e2e", "-keyout", "/etc/stunnel/legion.pem", "-out", "/etc/stunnel/legion.crt")
	m.write(t, "/etc/stunnel/legion.conf", "foreground = yes\ncert = /etc/stunnel/legion.crt\nkey = /etc/stunnel/legion.pem\n[greeting]\naccept = 127.0.0.1:8443\nconnect = 127.0.0.1:8081\n")
}

func tunnelled(_ *testing.T, m *machine) error {
	return m.talk("tcp", "127.0.0.1:8443", func(c net.Conn) error {
		// The certificate has just been made: whose it is, is not in question.
		said, err := io.ReadAll(tls.Client(c, &tls.Config{InsecureSkipVerify: true}))
		if err == nil && string(said) != "hello through the tunnel\n" {
			err = fmt.Errorf("it says %q", said)
		}
		return err
	})
}

// printers asks by IPP (RFC 8011, CUPS-Get-Printers) which printers there are:
// none.
func printers(_ *testing.T, m *machine) error {
	attribute := func(tag byte, name, value string) string {
		return string([]byte{tag, 0, byte(len(name))}) + name + string([]byte{0, byte(len(value))}) + value
	}
	request := "\x02\x00\x40\x02\x00\x00\x00\x01\x01" + attribute(0x47, "attributes-charset", "utf-8") + attribute(0x48, "attributes-natural-language", "en") + "\x03"
	client := http.Client{Transport: &http.Transport{DialContext: m.dial, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := client.Post("http://127.0.0.1:631/", "application/ipp", strings.NewReader(request))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && !strings.HasPrefix(string(body), "\x02\x00\x04\x06\x00\x00\x00\x01") {
		err = fmt.Errorf("it answers %s %q", resp.Status, body)
	}
	return err
}

// snmpGet asks for sysDescr.0 (RFC 3416), which Debian's configuration shows.
func snmpGet(_ *testing.T, m *machine) error {
	request := "\x30\x29\x02\x01\x01\x04\x06public\xa0\x1c\x02\x04\x00\x00\x1e\x61\x02\x01\x00\x02\x01\x00\x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\x00\x05\x00"
	return m.talk("udp", "127.0.0.1:161", func(c net.Conn) error {
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, request); err != nil {
			return err
		}
		buf := make([]byte, 4096)
		n, err := c.Read(buf)
		if err == nil && !strings.Contains(string(buf[:n]), "Linux legion-e2e") {
			err = fmt.Errorf("it answers %q", buf[:n])
		}
		return err
	})
}

// rpcCall calls procedure 0 of a program (RFC 5531), and rpcSuccess is the
// answer to it.
func rpcCall(program, version uint32) []byte {
	var out []byte
	for _, word := range []uint32{0x1e61, 0, 2, program, version, 0, 0, 0, 0, 0} {
		out = binary.BigEndian.AppendUint32(out, word)
	}
	return out
}

var rpcSuccess = func() []byte {
	return append([]byte{0, 0, 0x1e, 0x61, 0, 0, 0, 1}, make([]byte, 16)...)
}()
