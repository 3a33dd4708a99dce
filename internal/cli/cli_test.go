package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

func TestSinceWhen(t *testing.T) {
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.Local)
	for text, want := range map[string]time.Time{
		"":                    {},
		"infinity":            {},
		"10min":               now.Add(-10 * time.Minute),
		"-2h":                 now.Add(-2 * time.Hour),
		"90":                  now.Add(-90 * time.Second),
		"1h 30min ago":        now.Add(-90 * time.Minute),
		"2026-06-30":          time.Date(2026, 6, 30, 0, 0, 0, 0, time.Local),
		"2026-06-30 23:59:58": time.Date(2026, 6, 30, 23, 59, 58, 0, time.Local),
		"08:15":               time.Date(2026, 7, 1, 8, 15, 0, 0, time.Local),
	} {
		if got, err := sinceWhen(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
	}
	if _, err := sinceWhen("yesterdayish", now); err == nil {
		t.Error("no error")
	}
}

func TestNumberOfLines(t *testing.T) {
	for given, want := range map[string]string{
		"-n 5":               "--lines=5",
		"-n5 -u x":           "--lines=5 -u x",
		"-xeu x -n1":         "-xeu x --lines=1",
		"-qn20":              "-q --lines=20",
		"-qn 20":             "-q --lines=20",
		"-n all":             "--lines=all",
		"-n":                 "-n",
		"-u nginx --lines 3": "-u nginx --lines=3",
		"-unginx":            "-unginx",
	} {
		if got := strings.Join(joinShort(strings.Fields(given), "n"), " "); got != want {
			t.Errorf("%s: %s, want %s", given, got, want)
		}
	}
}

func TestWhoSpeaks(t *testing.T) {
	for text, want := range map[string]said{
		"plain":                           {tag: "sh", text: "plain", transport: "stdout", priority: 6},
		"<3>worse":                        {tag: "sh", text: "worse", transport: "stdout", priority: 3},
		"<6>sshd[402]: listening":         {tag: "sshd", pid: "402", text: "listening", transport: "syslog", priority: 6},
		"a list[1]: of a program":         {tag: "sh", text: "a list[1]: of a program", transport: "stdout", priority: 6},
		"map[x]: of a program in [brack]": {tag: "sh", text: "map[x]: of a program in [brack]", transport: "stdout", priority: 6},
	} {
		l := unitLog{unit: "a.service"}
		l.Text = text
		if got := speaker(l, map[string]string{"a.service": "sh"}); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

func TestReadLogJoinsParts(t *testing.T) {
	in := "2026-07-01T12:00:00.5Z stdout P one \n" +
		"2026-07-01T12:00:00.5Z stderr F aside\n" +
		"2026-07-01T12:00:00.6Z stdout F line\n" +
		"2026-07-01T12:00:00.7Z stdout F \n" +
		"no log line"
	var got []string
	if err := readLog(strings.NewReader(in), func(l logLine) error {
		got = append(got, l.Stream+":"+l.Text)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := "stderr:aside,stdout:one line,stdout:,:no log line"; strings.Join(got, ",") != want {
		t.Errorf("got %q, want %q", strings.Join(got, ","), want)
	}
}

func TestCalled(t *testing.T) {
	g := hostapi.Group{Spec: service.Group{Name: "ssh.service", Deps: service.Dependencies{Aliases: []string{"sshd.service"}}}}
	pod := hostapi.Group{Spec: service.Group{
		Name:        "pod-1",
		Annotations: map[string]string{"legion.dev/pod": `{"metadata":{"namespace":"a","name":"b"}}`},
	}}
	for _, name := range []string{"ssh", "ssh.service", "sshd"} {
		if !called(g, name) {
			t.Errorf("ssh.service is not found by %q", name)
		}
	}
	for _, name := range []string{"pod-1", "b", "a/b"} {
		if !called(pod, name) {
			t.Errorf("the pod is not found by %q", name)
		}
	}
	if called(g, "ss") || called(pod, "c/b") || called(pod, "a") {
		t.Error("found by a name that is not its own")
	}
}

func TestAgo(t *testing.T) {
	now := time.Now()
	for d, want := range map[time.Duration]string{
		300 * time.Millisecond:          "just now",
		1550 * time.Millisecond:         "1.5s ago",
		61 * time.Second:                "1min 1s ago",
		26*time.Hour + 61*time.Second:   "1d 2h ago",
		-time.Second:                    "just now",
		60*time.Minute + 30*time.Second: "1h 30s ago",
	} {
		if got := ago(now, now.Add(-d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

func TestErrorsAndStatuses(t *testing.T) {
	var out bytes.Buffer
	err := explained(&hostapi.Error{Code: "not-found", Message: "there is no unit", Hint: "look around"})
	if code := status(err, &out); code != exitNoSuchUnit || out.String() != "legion: there is no unit\nlook around\n" {
		t.Errorf("%d %q", code, out.String())
	}
	out.Reset()
	if code := status(&Exit{Status: exitNotRunning}, &out); code != exitNotRunning || out.Len() > 0 {
		t.Errorf("%d %q", code, out.String())
	}
	if code := status(errors.New("x"), &out); code != exitFailure {
		t.Errorf("%d", code)
	}
}

func TestSocketPath(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"HOME": dir}
	s := &session{Env: Env{Getenv: func(k string) string { return env[k] }}}
	if got := s.socketPath(); got != dir+"/.local/share/legion/host.sock" {
		t.Errorf("default: %s", got)
	}
	env["LEGION_DIR"] = "/d"
	if got := s.socketPath(); got != "/d/host.sock" {
		t.Errorf("LEGION_DIR: %s", got)
	}
	env["LEGION_HOST"] = "/h.sock"
	if got := s.socketPath(); got != "/h.sock" {
		t.Errorf("LEGION_HOST: %s", got)
	}
	s.socket = dir
	if got := s.socketPath(); got != dir+"/host.sock" {
		t.Errorf("-H with a directory: %s", got)
	}
	s = &session{Env: Env{Root: true, Getenv: func(string) string { return "" }}}
	if got := s.socketPath(); got != "/var/lib/legion/host.sock" {
		t.Errorf("root: %s", got)
	}
}

func TestCalendarSaysWhatIsNext(t *testing.T) {
	var out, errs bytes.Buffer
	s := &session{Env: Env{Out: &out, Err: &errs}}
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	err := s.calendar([]string{"Mon 8:00 UTC", "25:00", "2020-01-01 UTC"}, 2, now)
	var exit *Exit
	if !errors.As(err, &exit) || exit.Status != exitFailure || !strings.Contains(errs.String(), `"25:00"`) {
		t.Errorf("%v, %q", err, errs.String())
	}
	want := `  Original form: Mon 8:00 UTC
Normalized form: Mon *-*-* 08:00:00 UTC
    Next elapse: Mon 2026-07-06 08:00:00 UTC
       From now: in 4d 20h
   Iteration #2: Mon 2026-07-13 08:00:00 UTC
       From now: in 1w 4d

  Original form: 2020-01-01 UTC
Normalized form: 2020-01-01 00:00:00 UTC
    Next elapse: never
`
	if got := out.String(); time.Local.String() == "UTC" && got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestTimerTable(t *testing.T) {
	var out bytes.Buffer
	s := &session{Env: Env{Out: &out}}
	now := time.Date(2026, 7, 1, 12, 0, 0, 0, time.Local)
	timer := func(name string, st service.TriggerStatus, active string) hostapi.Group {
		return hostapi.Group{
			Spec: service.Group{Name: name, Timer: &service.Timer{Unit: strings.TrimSuffix(name, "timer") + "service"}}, ActiveState: active,
			Status: service.GroupStatus{Name: name, Trigger: &st},
		}
	}
	list := timers([]hostapi.Group{
		{Spec: service.Group{Name: "x.service"}},
		timer("off.timer", service.TriggerStatus{State: service.TriggerDead}, "inactive"),
		timer("late.timer", service.TriggerStatus{State: service.TriggerWaiting, Next: now.Add(90 * time.Minute)}, "active"),
		timer("soon.timer", service.TriggerStatus{State: service.TriggerWaiting, Next: now.Add(time.Minute), Last: now.Add(-time.Hour)}, "active"),
	})
	if err := s.timerTable(list, false, now); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) < 4 || !strings.Contains(lines[1], "soon.timer") || !strings.Contains(lines[1], "1h ago") ||
		!strings.Contains(lines[2], "1h 30min") || !strings.Contains(out.String(), "1 inactive") {
		t.Errorf("got:\n%s", out.String())
	}
}
