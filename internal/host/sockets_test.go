package host

import "testing"

func TestSource(t *testing.T) {
	for ends, want := range map[string]string{
		"127.0.0.1:80-10.0.0.7:4321":       "10.0.0.7",
		"7-127.0.0.1:80-10.0.0.7:4321":     "10.0.0.7",
		"2001:db8::1:80-2001:db8::2:54321": "2001:db8::2",
		"1234-1000":                        "1000",
		"2:1024-3:55":                      "3",
		"unknown":                          "",
		"":                                 "",
	} {
		if got := source(ends); got != want {
			t.Errorf("%q is from %q, want %q", ends, got, want)
		}
	}
}

func TestUndone(t *testing.T) {
	for why, want := range map[string]string{
		"no memory":                                                "cannot start a.service: no memory",
		"a.service: exited with status 1":                          "cannot start a.service: exited with status 1",
		"a.service: cannot start a.service: x":                     "cannot start a.service: x",
		"cannot start a.service with b.service, which it requires": "cannot start a.service with b.service, which it requires",
		"b.service, which it requires, did not start":              "cannot start a.service: b.service, which it requires, did not start",
	} {
		if got := undone("start", "a.service", why); got != want {
			t.Errorf("%q: %q, want %q", why, got, want)
		}
	}
}
