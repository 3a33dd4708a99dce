package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"legion.dev/legion/internal/service"
)

// TestLastWords: what a run leaves in its file is told with its end, and the
// next run finds the file empty.
func TestLastWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c", "message")
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		f := m.host(t)
		defer f.leave()
		g := service.Group{
			Name: "pod-1", Source: service.Source{Kind: service.FromPod}, Boot: true, Grace: time.Second,
			Services: []service.Service{{
				Name: "main", Type: service.Exec, Start: []service.Command{{Path: "/x"}},
				Restart:            service.Restart{Mode: service.RestartAlways, Delay: time.Second},
				TerminationMessage: &service.TerminationMessage{Path: path},
			}},
		}
		f.put(g)
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o666 || info.Size() != 0 {
			t.Fatalf("%v, %v", info, err)
		}
		if err := os.WriteFile(path, []byte("no more paper"+strings.Repeat(".", 5000)), 0o600); err != nil {
			t.Fatal(err)
		}
		m.crash("pod-1/main", 1)
		synctest.Wait()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		s := f.service("main")
		if s.Previous == nil || !strings.HasPrefix(s.Previous.Exit.Message, "no more paper.") || len(s.Previous.Exit.Message) != mostLastWords {
			t.Errorf("previous: %+v", s.Previous)
		}
		m.crash("pod-1/main", 1)
		synctest.Wait()
		if s := f.service("main"); s.Main.Exit == nil || s.Main.Exit.Message != "" {
			t.Errorf("main: %+v", s.Main)
		}
		f.remove(g, 0)
	})
}

func TestLogTail(t *testing.T) {
	line := func(flag, text string) string {
		return "2030-01-02T03:04:05.000000000Z stdout " + flag + " " + text + "\n"
	}
	many := ""
	for range 100 {
		many += line("F", "x")
	}
	for log, want := range map[string]string{
		"":                                     "",
		line("F", "one two") + line("F", ""):   "one two\n\n",
		line("P", "one ") + line("F", "two"):   "one two\n",
		many:                                   strings.Repeat("x\n", mostLogLines),
		line("F", strings.Repeat("a", 3000)):   strings.Repeat("a", mostLogBytes-1) + "\n",
		line("F", "\xff"):                      "�\n",
		"torn":                                 "",
		"2030-01-02T03:04:05Z stderr F no end": "no end",
	} {
		if got := logTail(log); got != want {
			t.Errorf("%.40q gives %.60q, want %.60q", log, got, want)
		}
	}
}

// TestRuntimeWords: why an OCI runtime could not start a container is part of
// the reason.
func TestRuntimeWords(t *testing.T) {
	dir := t.TempDir()
	log := `{"level":"warning","msg":"something else"}` + "\n" + `{"level":"error","msg":"exec: \"/no/such\": no such file"}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, service.RuntimeLog), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		m := newFake()
		g := unitOf("n", service.Dependencies{})
		s := &g.Services[0]
		s.Type, s.PIDFile, s.Exec.Container = service.Forking, filepath.Join(dir, "pid"), &service.Container{Bundle: dir}
		m.units = []service.Group{g}
		f := m.host(t)
		defer f.leave()
		if _, err := f.h.Do(t.Context(), "n", "start", "test", false, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		m.crash("n", 1)
		time.Sleep(time.Second)
		group, err := f.h.Group(t.Context(), "n")
		if err != nil {
			t.Fatal(err)
		}
		if st := group.Status.Services[0]; !strings.HasSuffix(st.Reason, `exited with status 1: exec: "/no/such": no such file`) {
			t.Errorf("it is %s: %s", st.State, st.Reason)
		}
	})
}
