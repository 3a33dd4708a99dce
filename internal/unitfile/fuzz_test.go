package unitfile

import (
	"strings"
	"testing"
)

// FuzzCompile: no text may make the compiler fail in any way but by its error,
// and each warning and error names the file.
func FuzzCompile(f *testing.F) {
	f.Add(everything)
	for _, row := range table(f, "conf-parser")[:6] {
		f.Add(long(f, row["content"]))
	}
	for _, row := range table(f, "directive-values") {
		f.Add("[Service]\nExecStart=/bin/true\n" + row["directive"] + "=" + long(f, row["input"]))
	}
	f.Fuzz(func(t *testing.T, content string) {
		file, err := Parse("/u/f.service", []byte(content))
		if err == nil {
			g, cerr := Compile("f.service", file, nil, Options{Root: true})
			for _, w := range g.Warnings {
				if w.File != "/u/f.service" || w.Text == "" {
					t.Errorf("%+v", w)
				}
			}
			err = cerr
		}
		if err != nil && !strings.HasPrefix(err.Error(), "/u/f.service:") {
			t.Errorf("error without a place: %v", err)
		}
	})
}

// FuzzExec: whatever is accepted can be started.
func FuzzExec(f *testing.F) {
	for _, row := range table(f, "exec") {
		if s := long(f, row["input"]); len(s) < 1000 {
			f.Add(s)
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		cmds, _ := ParseExec(s, same)
		for _, c := range cmds {
			if c.Path == "" || len(c.Argv) == 0 || c.Argv[0] == "" {
				t.Errorf("%q gives %+v", s, c)
			}
		}
	})
}

// FuzzEnvironmentFile: each result is an assignment to a valid name.
func FuzzEnvironmentFile(f *testing.F) {
	for _, row := range table(f, "env-file") {
		if row["function"] == "load_env_file" {
			f.Add([]byte(long(f, row["content"])))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		env, _ := ParseEnvironmentFile(data)
		for _, e := range env {
			if name, _, ok := strings.Cut(e, "="); !ok || !ValidEnvironmentName(name) {
				t.Errorf("%q", e)
			}
		}
	})
}

// FuzzNames: what is made is valid, and escaping is undone by unescaping.
func FuzzNames(f *testing.F) {
	for _, row := range table(f, "unit-name-valid") {
		f.Add(long(f, row["input"]))
	}
	f.Fuzz(func(t *testing.T, s string) {
		if name, err := Mangle(s, false); err == nil && !ValidName(name, AnyName) {
			t.Errorf("%q is mangled to %q", s, name)
		}
		if strings.Contains(s, "\x00") {
			return // no path and no name holds one
		}
		if back, err := Unescape(Escape(s)); err != nil || back != s {
			t.Errorf("%q escaped is %q, unescaped %q, %v", s, Escape(s), back, err)
		}
	})
}

// FuzzValues runs the small parsers; they must not panic, and a size printed
// back reads the same.
func FuzzValues(f *testing.F) {
	for _, name := range []string{"size", "signal", "numbers"} {
		for _, row := range table(f, name) {
			if strings.HasPrefix(row["input"], `"`) {
				f.Add(long(f, row["input"]))
			}
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := ParseSignal(s); err == nil {
			if back, err := ParseSignal(SignalName(n)); err != nil || back != n {
				t.Errorf("%q is %d, printed %q, read %d, %v", s, n, SignalName(n), back, err)
			}
		}
		for resource := range rlimits {
			if l, err := ParseRlimit(resource, s); err == nil && l.Soft > l.Hard {
				t.Errorf("%s %q: %+v", resource, s, l)
			}
		}
		_, _ = ParseSize(s, 1000)
		_, _ = ParseMode(s)
		_, _ = ParseNice(s)
		ws := Words{Rest: s}
		for range len(s) + 2 {
			if _, ok, err := ws.NextUnit("", Unquote|CUnescape); !ok || err != nil {
				return
			}
		}
		t.Errorf("%q does not end", s)
	})
}
