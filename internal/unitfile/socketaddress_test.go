package unitfile

import (
	"errors"
	"path"
	"strings"
	"testing"
)

func TestSocketAddress(t *testing.T) {
	for _, r := range table(t, "socket-address") {
		input := decode[string](t, r["input"])
		a, err := ParseSocketAddress(input, r["ipv6"] != "no")
		if r["result"] == "error:ENODEV" {
			// Which interfaces there are is found when the socket is opened.
			if err != nil || a.Interface == "" {
				t.Errorf("%s: %q: %+v, %v, want an interface", r["source"], input, a, err)
			}
			continue
		}
		if strings.HasPrefix(r["result"], "error") != (err != nil) {
			t.Errorf("%s: %q: %+v, %v, want %s", r["source"], input, a, err, r["result"])
		}
		if r["result"] == "error:ERANGE" && !errors.Is(err, ErrRange) {
			t.Errorf("%s: %q: %v, want it out of range", r["source"], input, err)
		}
		if r["result"] != "ok" || err != nil {
			continue
		}
		if a.Family() != r["family"] || r["printed"] != "-" && a.String() != decode[string](t, r["printed"]) {
			t.Errorf("%s: %q is %s of %s, want %s of %s", r["source"], input, a, a.Family(), r["printed"], r["family"])
		}
	}
}

// TestSocketAddressesCompared: the vectors of netlink sockets and of name servers'
// addresses are left out, for Legion opens no socket of the one kind and reads no
// address of the other.
func TestSocketAddressesCompared(t *testing.T) {
	parse := func(s string) SocketAddress {
		a, err := ParseSocketAddress(s, true)
		if err != nil {
			t.Errorf("%q: %v", s, err)
		}
		return a
	}
	seen := 0
	for _, r := range table(t, "socket-netlink") {
		if r["function"] != "socket_address_equal" && r["function"] != "socket_address_get_path" {
			continue
		}
		args := decode[[]string](t, r["args"])
		if strings.HasPrefix(args[0], "netlink ") {
			continue
		}
		seen++
		a := parse(args[0])
		if r["function"] == "socket_address_equal" {
			if got := a == parse(args[1]); got != (r["result"] == "true") {
				t.Errorf("%s: %q are equal: %v, want %s", r["source"], args, got, r["result"])
			}
			continue
		}
		if want := r["result"]; path.IsAbs(a.Path) != (want != "null") || want != "null" && a.Path != decode[string](t, want) {
			t.Errorf("%s: %q has the path %q, want %s", r["source"], args, a.Path, want)
		}
	}
	if seen == 0 {
		t.Error("no vector was read")
	}
}

func FuzzSocketAddress(f *testing.F) {
	for _, r := range table(f, "socket-address") {
		f.Add(decode[string](f, r["input"]))
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseSocketAddress(s, true)
		if err != nil {
			return
		}
		if again, err := ParseSocketAddress(a.String(), true); err != nil || again != a {
			t.Errorf("%q is printed as %q, which reads back as %+v, %v", s, a, again, err)
		}
	})
}

func TestTriggersCompile(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"a.timer":  {"[Timer]\nOnCalendar=hourly\n", ""},
		"b.timer":  {"[Timer]\nOnCalendar=25:00\n", "no On…="},
		"c.path":   {"[Path]\nPathExists=rel\n", "says what it looks at"},
		"d.path":   {"[Path]\nPathChanged=/x//y\nUnit=e.service\n", ""},
		"e.socket": {"[Socket]\nListenStream=/run/%N.sock\nListenStream=22\n", ""},
		"f.socket": {"[Socket]\nListenDatagram=/x\nAccept=yes\n", "takes no connections"},
		"g.socket": {"[Socket]\nListenNetlink=route 1\n", "no Listen…="},
		"h.socket": {"[Socket]\nListenStream=1\nListenStream=\nListenStream=@h\nAccept=yes\n", ""},
	} {
		f, err := Parse(name, []byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		g, err := Compile(name, f, nil, Options{Root: true})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
			continue
		}
		if err != nil {
			continue
		}
		want := map[string]string{"a.timer": "a.service", "d.path": "e.service", "e.socket": "e.service", "h.socket": "h@.service"}[name]
		if g.Triggers() != want {
			t.Errorf("%s starts %q, want %q", name, g.Triggers(), want)
		}
		if s := g.Socket; s != nil && name == "e.socket" && (len(s.Listen) != 2 || s.Listen[0].Address != "/run/e.sock" || s.Name != name) {
			t.Errorf("%s: %+v", name, s)
		}
		if s := g.Socket; s != nil && name == "h.socket" && (len(s.Listen) != 1 || s.MaxConnections != 64 || s.Name != "connection") {
			t.Errorf("%s: %+v", name, s)
		}
		if p := g.Path; p != nil && p.Conditions[0].Path != "/x/y" {
			t.Errorf("%s: %+v", name, p)
		}
	}
}
