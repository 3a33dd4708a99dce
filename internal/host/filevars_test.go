package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// TestReadVariables: only a regular file below the directory is read, and of
// what is optional nothing need be there.
func TestReadVariables(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(outside, "secret"), "A='stolen'\n")
	write(filepath.Join(dir, "env"), "A='one'\nB='two\nlines'\n")
	write(filepath.Join(dir, "wrong"), "A=one\n")
	write(filepath.Join(dir, "long"), strings.Repeat("# much\n", 1<<18))
	if err := os.Symlink("env", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "secret"), filepath.Join(dir, "escape")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path, key string
		optional  bool
		want      string
	}{
		{"env", "B", false, "two\nlines"},
		{"link", "A", false, "one"},
		{"none", "A", true, "unset"},
		{"env", "C", true, "unset"},
		{"none", "A", false, `cannot read variable V from file "none" of its volume: no such file or directory`},
		{"env", "C", false, `environment variable key "C" not found in file "env" of its volume`},
		{"escape", "A", true, `cannot read variable V from file "escape" of its volume: path escapes from parent`},
		{"fifo", "A", false, `cannot read variable V from file "fifo" of its volume: it is no regular file`},
		{"wrong", "A", true, `cannot read variable V from file "wrong" of its volume: line 1: the value is not in single quotes`},
		{"long", "A", false, `cannot read variable V from file "long" of its volume: it is longer than 1048576 bytes`},
	} {
		values, err := readVariables([]service.FileVariable{{Name: "V", Dir: dir, Path: test.path, Key: test.key, Optional: test.optional}})
		got := "unset"
		switch {
		case err != nil:
			got = err.Error()
		case values[0] != nil:
			got = *values[0]
		}
		if got != test.want {
			t.Errorf("%s in %s: %s, want %s", test.key, test.path, got, test.want)
		}
	}
}

// TestFileVariables: a start reads them, and what it has read holds until the
// next one, also for a legiond that takes over.
func TestFileVariables(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		dir := t.TempDir()
		write := func(text string) {
			if err := os.WriteFile(filepath.Join(dir, "env"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		g := stagedPod(service.RestartAlways)
		g.Services = g.Services[3:]
		s := &g.Services[0]
		s.Exec.FileVariables = []service.FileVariable{
			{Name: "COLOUR", Mark: "\x000\x00", Dir: dir, Path: "env", Key: "A"},
			{Name: "SHAPE", Mark: "\x001\x00", Dir: dir, Path: "env", Key: "B", Optional: true},
		}
		s.Exec.Environment = []string{"COLOUR=\x000\x00", "SHAPE=\x001\x00", "BOTH=\x000\x00, \x001\x00", "PLAIN=x"}
		s.Exec.Container = &service.Container{Spec: []byte(`{"process":{"cwd":"/","env":["COLOUR=\u00000\u0000","SHAPE=\u00001\u0000"],"args":["x","\u00000\u0000 \u00001\u0000"]}}`)}
		s.Start[0].Argv = []string{"x", "--colour=\x000\x00"}

		f := m.host(t)
		f.put(g)
		f.expect("")
		if s := f.service("main"); s.Result != service.Resources || !strings.HasSuffix(s.Reason, `cannot start pod-1/main: cannot read variable COLOUR from file "env" of its volume: no such file or directory`) {
			t.Errorf("without its file: %+v", s)
		}
		check := func(want ...string) {
			t.Helper()
			var got []string
			if err := f.h.do(t.Context(), func() {
				c := f.h.groups["pod-1"].services[0].context()
				got = append(slices.Clone(c.Environment), string(c.Container.Spec))
			}); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, want) {
				t.Errorf("it has %q, want %q", got, want)
			}
		}
		check("BOTH=$(COLOUR), $(SHAPE)", "PLAIN=x", `{"process":{"args":["x","$(COLOUR) $(SHAPE)"],"cwd":"/","env":null}}`)
		write("A='red \"x\"'\n")
		if err := f.do("pod-1", "restart"); err != nil {
			t.Error(err)
		}
		f.expect("start main")
		if got := m.asked["main"].Command.Argv; !slices.Equal(got, []string{"x", `--colour=red "x"`}) {
			t.Errorf("it is started with %q", got)
		}
		first := []string{`COLOUR=red "x"`, `BOTH=red "x", $(SHAPE)`, "PLAIN=x", `{"process":{"args":["x","red \"x\" $(SHAPE)"],"cwd":"/","env":["COLOUR=red \"x\""]}}`}
		if got := m.asked["main"].Context; !slices.Equal(append(slices.Clone(got.Environment), string(got.Container.Spec)), first) {
			t.Errorf("it is started with %q, %s", got.Environment, got.Container.Spec)
		}
		write("A='green'\nB='round'\n")
		check(first...)
		f.leave()
		f = m.hostWith(t, Saved{
			Groups: map[string]service.Group{g.Name: g}, Runs: map[string]record{g.Name: m.saved["runs pod-1"].(record)}, Wishes: map[string]wish{g.Name: m.saved["wishes pod-1"].(wish)},
		})
		check(first...)
		m.crash("pod-1/main", 1)
		f.said()
		check("COLOUR=green", "SHAPE=round", "BOTH=green, round", "PLAIN=x", `{"process":{"args":["x","green round"],"cwd":"/","env":["COLOUR=green","SHAPE=round"]}}`)
		f.leave()
	})
}
