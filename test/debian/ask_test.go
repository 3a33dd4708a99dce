package debian

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/net/dns/dnsmessage"
)

// talk connects and has the conversation that f holds.
func (m *machine) talk(network, address string, f func(net.Conn) error) error {
	c, err := m.dial(context.Background(), network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	return f(c)
}

// turn is one of a conversation in lines: what is said, nothing at first where
// the server begins, and what a line of the answer must contain.
type turn struct{ say, hear string }

// lineTalk asks a server that speaks in lines.
func lineTalk(network, address string, turns ...turn) func(*testing.T, *machine) error {
	return func(_ *testing.T, m *machine) error {
		return m.talk(network, address, func(c net.Conn) error {
			in := bufio.NewReader(c)
			for _, x := range turns {
				if _, err := io.WriteString(c, x.say); err != nil {
					return err
				}
				var heard []string
				for !strings.Contains(strings.Join(heard, ""), x.hear) {
					line, err := in.ReadString('\n')
					heard = append(heard, line)
					if err != nil && !strings.Contains(line, x.hear) {
						return fmt.Errorf("on %q it says %q, which has no %q: %w", x.say, heard, x.hear, err)
					}
				}
			}
			return nil
		})
	}
}

// bytesTalk asks a server that answers each message with exactly one other.
func bytesTalk(network, address string, pairs ...[]byte) func(*testing.T, *machine) error {
	return func(_ *testing.T, m *machine) error {
		return m.talk(network, address, func(c net.Conn) error {
			for i := 0; i+1 < len(pairs); i += 2 {
				if _, err := c.Write(pairs[i]); err != nil {
					return err
				}
				got := make([]byte, len(pairs[i+1]))
				if _, err := io.ReadFull(c, got); err != nil {
					return err
				}
				if !bytes.Equal(got, pairs[i+1]) {
					return fmt.Errorf("to %x it answers %x, want %x", pairs[i], got, pairs[i+1])
				}
			}
			return nil
		})
	}
}

// page fetches a page, which must have the status and contain the text.
func page(url string, status int, want string) func(*testing.T, *machine) error {
	return func(_ *testing.T, m *machine) error { return m.page("", url, status, want) }
}

// page fetches by way of a proxy, where one is named.
func (m *machine) page(proxy, address string, status int, want string) error {
	transport := &http.Transport{DialContext: m.dial, DisableKeepAlives: true}
	if proxy != "" {
		transport.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: proxy})
	}
	client := http.Client{Transport: transport, Timeout: 20 * time.Second}
	resp, err := client.Get(address)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	text := fmt.Sprint(resp.Header) + string(body)
	if resp.StatusCode != status || !strings.Contains(text, want) {
		return fmt.Errorf("%s is %s and has no %q: %.500s", address, resp.Status, want, text)
	}
	return nil
}

// command runs a client of the daemon's own; its output must contain the text.
func command(want string, args ...string) func(*testing.T, *machine) error {
	return func(t *testing.T, m *machine) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		out, err := m.try(ctx, args...)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("%s says %q, which has no %q", strings.Join(args, " "), out, want)
		}
		return err
	}
}

// resolve asks a name server for the address of a name.
func resolve(server, name string, want [4]byte) func(*testing.T, *machine) error {
	return func(_ *testing.T, m *machine) error {
		question := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: 0x1e61, RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		}
		data, err := question.Pack()
		if err != nil {
			return err
		}
		return m.talk("udp", server, func(c net.Conn) error {
			if _, err := c.Write(data); err != nil {
				return err
			}
			buf := make([]byte, 4096)
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			var answer dnsmessage.Message
			if err := answer.Unpack(buf[:n]); err != nil {
				return err
			}
			for _, r := range answer.Answers {
				if a, ok := r.Body.(*dnsmessage.AResource); ok && answer.ID == question.ID && a.A == want {
					return nil
				}
			}
			return fmt.Errorf("%s is not %v: %+v", name, want, answer)
		})
	}
}

// busCall calls a method on the system bus that takes nothing and returns a
// text, which must contain want. It has nobody started for it.
func busCall(name, path, method, want string) func(*testing.T, *machine) error {
	return func(t *testing.T, m *machine) error {
		return m.busCall(t, name, path, method, want, dbus.FlagNoAutoStart)
	}
}

func (m *machine) busCall(t *testing.T, name, path, method, want string, flags dbus.Flags) error {
	return m.talk("unix", "/run/dbus/system_bus_socket", func(c net.Conn) error {
		conn, err := dbus.NewConn(c)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.Auth([]dbus.Auth{dbus.AuthExternal("0")}); err != nil {
			return err
		}
		if err := conn.Hello(); err != nil {
			return err
		}
		var got string
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err = conn.Object(name, dbus.ObjectPath(path)).CallWithContext(ctx, method, flags).Store(&got)
		if err == nil && !strings.Contains(got, want) {
			err = fmt.Errorf("%s says %q, which has no %q", method, got, want)
		}
		return err
	})
}
