package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/cgroup"
	"legion.dev/legion/internal/service"
)

var shared *Runner

func TestMain(m *testing.M) {
	if os.Getenv("LEGION_TEST_WITHOUT_GETFD") != "" {
		os.Exit(withoutGetfd())
	}
	if os.Getenv("LEGION_TEST_CLOSES") != "" {
		os.Exit(closes())
	}
	r, err := New(Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	shared = r
	os.Exit(m.Run())
}

func shell(script string) Request {
	return Request{Group: "t.service", Service: "t.service", Command: service.Command{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, NoExpand: true}}
}

func start(t *testing.T, q Request) *Process {
	t.Helper()
	p, err := shared.Start(q)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Signal(syscall.SIGKILL) })
	return p
}

// exitOfPID waits for one process and passes over others.
func exitOfPID(t *testing.T, pid int) Exited {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case x := <-shared.Exits():
			if x.PID == pid {
				return x
			}
		case <-deadline:
			t.Fatalf("process %d: no exit was reported", pid)
		}
	}
}

func output(t *testing.T, q Request) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exit, out, err := shared.Output(ctx, q, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if exit.Code != 0 || exit.Signal != 0 {
		t.Fatalf("exit %+v, output %q", exit, out)
	}
	return strings.TrimSpace(string(out))
}

func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readLine(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path) // to the end: the writer closes it
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestExitCodeAndSignal(t *testing.T) {
	p := start(t, shell("exit 3"))
	if x := exitOfPID(t, p.PID); x.Exit.Code != 3 || x.Exit.Signal != 0 || x.StartTicks != p.StartTicks || x.Orphan {
		t.Errorf("exit: %+v", x)
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal after the end: %v", err)
	}
	p = start(t, shell("exec sleep 1000"))
	if err := p.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := exitOfPID(t, p.PID); x.Exit.Signal != 9 {
		t.Errorf("exit: %+v", x)
	}
}

func TestStartErrorsNameTheStage(t *testing.T) {
	for _, c := range []struct {
		name, want string
		code       int
		q          Request
	}{
		{
			"user", `cannot start t.service: set user "nosuch": no such user`, 217,
			Request{Context: &service.ExecContext{User: "nosuch"}},
		},
		{
			"group", `cannot start t.service: set group "nosuch": no such group`, 216,
			Request{Context: &service.ExecContext{Group: "nosuch"}},
		},
		{
			"command", `cannot start t.service: execute "/nosuch/command": no such file or directory`, 203,
			Request{Command: service.Command{Path: "/nosuch/command"}},
		},
		{
			"bare command", `cannot start t.service: find command "nosuch": no such command in ` + DefaultPath, 203,
			Request{Command: service.Command{Path: "nosuch"}},
		},
		{
			"directory", `cannot start t.service: change directory to "/nosuch": no such file or directory`, 200,
			Request{Context: &service.ExecContext{WorkingDirectory: "/nosuch"}},
		},
		{
			"not executable", `cannot start t.service: execute "/etc/passwd": permission denied`, 203,
			Request{Command: service.Command{Path: "/etc/passwd"}},
		},
		{
			"environment file", `cannot start t.service: read EnvironmentFile "/nosuch": no such file or directory`, 1,
			Request{Context: &service.ExecContext{EnvironmentFiles: []service.EnvironmentFile{{Path: "/nosuch"}}}},
		},
		{
			"limit", `cannot start t.service: set LimitNOSUCH: no such limit; known are`, 205,
			Request{Context: &service.ExecContext{Rlimits: map[string]service.Rlimit{"NOSUCH": {}}}},
		},
		{
			"root", `cannot start t.service: change root to "/nosuch": no such file or directory`, 210,
			Request{Context: &service.ExecContext{RootDirectory: "/nosuch"}},
		},
		{
			"network", `cannot start t.service: enter network namespace "/nosuch": no such file or directory`, 225,
			Request{Context: &service.ExecContext{NetworkNamespacePath: "/nosuch"}},
		},
		{
			"cgroup", `cannot start t.service: open cgroup "/nosuch": no such file or directory`, 219,
			Request{Cgroup: "/nosuch"},
		},
		{
			"output", `cannot start t.service: open standard output: open /nosuch/file: no such file or directory`, 209,
			Request{Context: &service.ExecContext{StandardOutput: "append:/nosuch/file"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.q.Group, c.q.Service = "t.service", "t.service"
			if c.q.Command.Path == "" {
				c.q.Command.Path = "/bin/true"
			}
			_, err := shared.Start(c.q)
			var se *StartError
			if !errors.As(err, &se) || !strings.HasPrefix(err.Error(), c.want) || se.Code != c.code {
				t.Errorf("got  %v (%+v)\nwant %s (%d)", err, se, c.want, c.code)
			}
		})
	}
}

func TestDefaultsOfAProcess(t *testing.T) {
	if got := withoutSIG32(output(t, shell("pwd; umask; ulimit -n; cat <&0; ps -o pid=,pgid=,sid= -p $$ | tr -s ' '; grep -E '^Sig(Blk|Ign)' /proc/self/status"))); true {
		lines := strings.Split(got, "\n")
		if lines[0] != "/" && os.Geteuid() == 0 {
			t.Errorf("directory %q", lines[0])
		}
		if lines[1] != "0022" {
			t.Errorf("umask %q", lines[1])
		}
		ids := strings.Fields(lines[3])
		if len(ids) == 3 && (ids[0] != ids[1] || ids[0] != ids[2]) {
			t.Errorf("not a session of its own: %q", lines[3])
		}
		if want := "SigBlk:\t0000000000000000\nSigIgn:\t0000000000001000"; !strings.HasSuffix(got, want) {
			t.Errorf("signals:\n%s", got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("A=file\nB='from file'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PASSED", "yes")
	t.Setenv("KEPT_BACK", "yes")
	got := output(t, Request{
		Group: "g", Service: "s", Env: []string{"MAINPID=7"},
		Command: service.Command{Path: "env"},
		Context: &service.ExecContext{
			Environment:      []string{"A=unit", "C=unit", "GONE=1"},
			EnvironmentFiles: []service.EnvironmentFile{{Path: file}, {Path: "/nosuch", Optional: true}},
			PassEnvironment:  []string{"PASSED"}, UnsetEnvironment: []string{"GONE"},
		},
	})
	for _, want := range []string{"A=file", "B=from file", "C=unit", "MAINPID=7", "PASSED=yes", "PATH=" + DefaultPath, "INVOCATION_ID="} {
		if !strings.Contains("\n"+got, "\n"+want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(got, "GONE") || strings.Contains(got, "KEPT_BACK") {
		t.Errorf("too much:\n%s", got)
	}
	got = output(t, Request{Group: "g", Command: service.Command{Path: "/usr/bin/env"}, Context: &service.ExecContext{CleanEnvironment: true, Environment: []string{"X=1"}}})
	if got != "X=1" {
		t.Errorf("clean environment: %q", got)
	}
	got = output(t, Request{
		Group: "g", Command: service.Command{Path: "/bin/echo", Argv: []string{"echo", "$WORDS", "${WORDS}", "$$", "${NONE}x"}},
		Context: &service.ExecContext{Environment: []string{"WORDS=a  b"}},
	})
	if got != "a b a  b $ x" {
		t.Errorf("expanded: %q", got)
	}
}

func TestSandboxStep(t *testing.T) {
	umask, nice, oom, no := uint32(0o027), 5, 500, false
	q := shell("umask; ulimit -n; nice; cat /proc/self/oom_score_adj; grep -E '^SigIgn' /proc/self/status; grep NoNew /proc/self/status; test $SYSTEMD_EXEC_PID = $$ && ls /proc/self/fd")
	q.Context = &service.ExecContext{
		UMask: &umask, Nice: &nice, OOMScoreAdjust: &oom, NoNewPrivileges: true, IgnoreSIGPIPE: &no,
		Rlimits: map[string]service.Rlimit{"NOFILE": {Soft: 77, Hard: 99}},
	}
	want := "0027\n77\n5\n500\nSigIgn:\t0000000000000000\nNoNewPrivs:\t1\n0\n1\n2\n3" // 3 is the directory that ls reads
	if got := withoutSIG32(output(t, q)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// withoutSIG32 overlooks the signal that the C library keeps for itself and
// that children of a test with the race detector ignore.
func withoutSIG32(status string) string {
	return strings.ReplaceAll(status, "SigIgn:\t000000008000", "SigIgn:\t000000000000")
}

func TestUserAndDirectories(t *testing.T) {
	root(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, nnp := range []bool{false, true} { // plain and through the sandbox
		q := shell("id -un; id -G; echo $HOME $USER $RUNTIME_DIRECTORY; stat -c '%U %a' $RUNTIME_DIRECTORY $STATE_DIRECTORY; echo x >$STATE_DIRECTORY/x; echo again >/dev/stderr")
		q.Dirs = BaseDirs{Runtime: dir + "/run", State: dir + "/lib"}
		q.Context = &service.ExecContext{
			User: "daemon", SupplementaryGroups: []string{"tty"}, NoNewPrivileges: nnp,
			Runtime: []service.Directory{{Path: "d/e", Mode: 0o750}}, State: []service.Directory{{Path: "s"}},
		}
		want := "daemon\n1 5\n/usr/sbin daemon " + dir + "/run/d/e\ndaemon 750\ndaemon 755\nagain"
		for p := dir; p != "/"; p = filepath.Dir(p) {
			if st, err := os.Stat(p); err == nil && st.Mode()&0o001 == 0 {
				if err := os.Chmod(p, st.Mode()|0o011); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := output(t, q); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
		if err := RemoveRuntime(q.Context, q.Dirs, false); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir + "/run/d/e"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("runtime directory is still there: %v", err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	root(t)
	keep := []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"}
	q := shell("grep -E '^Cap(Bnd|Amb|Eff)' /proc/self/status")
	q.Context = &service.ExecContext{User: "daemon", AmbientCapabilities: []string{"CAP_NET_BIND_SERVICE"}, CapabilityBoundingSet: &keep}
	want := "CapEff:\t0000000000000400\nCapBnd:\t0000000000000401\nCapAmb:\t0000000000000400"
	if got := output(t, q); got != want {
		t.Errorf("got\n%s", got)
	}
	q.Context.CapabilityBoundingSet = nil // the plain way
	if got := output(t, q); !strings.HasPrefix(got, "CapEff:\t0000000000000400") || !strings.HasSuffix(got, "CapAmb:\t0000000000000400") {
		t.Errorf("got\n%s", got)
	}
}

func TestNetworkNamespaceAndCgroup(t *testing.T) {
	root(t)
	ready := fifo(t)
	p := start(t, shell("exec unshare -n sh -c 'echo >"+ready+"; exec sleep 1000'"))
	readLine(t, ready)
	q := shell("readlink /proc/self/ns/net; cat /proc/self/cgroup")
	q.Context = &service.ExecContext{NetworkNamespacePath: fmt.Sprintf("/proc/%d/ns/net", p.PID)}
	dir, err := cgroup.Default(fmt.Sprintf("legion-test-runner-%d", os.Getpid()))
	if err != nil {
		t.Skip(err)
	}
	tree, err := cgroup.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if mode, why := tree.Mode(); mode == cgroup.None {
		t.Skip(why)
	}
	defer tree.Close()
	defer func() {
		if err := tree.Remove("."); err != nil {
			t.Error(err)
		}
	}()
	if q.Cgroup, err = tree.Create("a.service"); err != nil {
		t.Fatal(err)
	}
	want, err := os.Readlink(q.Context.NetworkNamespacePath)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // through the sandbox, then plain
		got := output(t, q)
		if q.Context.NetworkNamespacePath != "" && !strings.HasPrefix(got, want+"\n") {
			t.Errorf("namespace: %s, want %s", got, want)
		}
		if !strings.HasSuffix(got, filepath.Base(dir)+"/a.service") {
			t.Errorf("cgroup: %s", got)
		}
		q.Context.NetworkNamespacePath = ""
	}
}

func TestArgumentsNeedNotBeText(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		got := output(t, Request{
			Group: "g", Command: service.Command{Path: "/bin/echo", Argv: []string{"echo", "\xff\xfe"}},
			Context: &service.ExecContext{NoNewPrivileges: nnp},
		})
		if got != "\xff\xfe" {
			t.Errorf("%q", got)
		}
	}
}

func TestOutputsOtherThanTheLog(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out")
	q := shell("echo out; echo err >&2")
	for _, c := range []struct{ out, err, want string }{
		{"truncate:" + file, "", "out\nerr\n"},
		{"append:" + file, "inherit", "out\nerr\nout\nerr\n"},
		{"truncate:" + file, "null", "out\n"},
		{"null", "append:" + file, "out\nerr\n"},
	} {
		q.Context = &service.ExecContext{StandardOutput: c.out, StandardError: c.err}
		exitOfPID(t, start(t, q).PID)
		if got, err := os.ReadFile(file); err != nil || string(got) != c.want {
			t.Errorf("%s %s: %q, %v", c.out, c.err, got, err)
		}
	}
	if got := Lost(&service.ExecContext{StandardInput: "tty", StandardOutput: "kmsg", StandardError: "journal"}); len(got) != 2 {
		t.Errorf("%q", got)
	}
}

// Only the process's own parent may wait for it; the kernel tells others.
func TestAdoptAStrangersChild(t *testing.T) {
	f := fifo(t)
	parent := start(t, shell("sleep 1000 & echo $! >"+f+"; wait $!; exec sleep 1000"))
	pid, err := strconv.Atoi(readLine(t, f))
	if err != nil {
		t.Fatal(err)
	}
	ticks, err := StartTicks(pid)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := shared.Adopt(pid, ticks+1); !errors.Is(err, ErrGone) {
		t.Errorf("another process was adopted: %v", err)
	}
	p, err := shared.Adopt(pid, ticks)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if x := exitOfPID(t, pid); x.Exit.Signal != int(syscall.SIGTERM) && !x.Exit.Unknown {
		t.Errorf("exit: %+v", x)
	} else if x.Exit.Unknown {
		t.Log("this kernel does not tell")
	}
	_ = parent.Signal(syscall.SIGKILL)
	exitOfPID(t, parent.PID)
	if _, err := shared.Adopt(parent.PID, parent.StartTicks); !errors.Is(err, ErrGone) {
		t.Errorf("adopted after its end: %v", err)
	}
}

func TestOrphansAreReapedAndAdoptable(t *testing.T) {
	f, g := fifo(t), fifo(t)
	p := start(t, shell("(read x <"+g+"; exit 4) & echo $! >"+f))
	orphan, err := strconv.Atoi(readLine(t, f))
	if err != nil {
		t.Fatal(err)
	}
	exitOfPID(t, p.PID)
	if _, err := shared.Adopt(orphan, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(g, []byte("go\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if x := exitOfPID(t, orphan); x.Exit.Code != 4 || x.Orphan {
		t.Errorf("exit: %+v", x)
	}
	p = start(t, shell("(read x <"+g+"; exit 5) & echo $! >"+f))
	orphan, err = strconv.Atoi(readLine(t, f))
	if err != nil {
		t.Fatal(err)
	}
	exitOfPID(t, p.PID)
	if err := os.WriteFile(g, []byte("go\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if x := exitOfPID(t, orphan); x.Exit.Code != 5 || !x.Orphan {
		t.Errorf("exit: %+v", x)
	}
	// Who had a look at it and let go of it learns how it ends all the same.
	p = start(t, shell("(read x <"+g+"; exit 6) & echo $! >"+f))
	orphan, err = strconv.Atoi(readLine(t, f))
	if err != nil {
		t.Fatal(err)
	}
	exitOfPID(t, p.PID)
	seen, err := shared.Adopt(orphan, 0)
	if err != nil {
		t.Fatal(err)
	}
	seen.Close()
	if err := os.WriteFile(g, []byte("go\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if x := exitOfPID(t, orphan); x.Exit.Code != 6 {
		t.Errorf("exit: %+v", x)
	}
}

func TestOutputIsBoundedInSizeAndTime(t *testing.T) {
	_, out, err := shared.Output(t.Context(), shell("yes | head -c 1000000"), 100)
	if err != nil || len(out) != 100 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	exit, _, err := shared.Output(ctx, shell("echo begun; sleep 1000 & sleep 1000"), 100)
	if !errors.Is(err, context.DeadlineExceeded) || exit.Signal != 9 {
		t.Errorf("exit %+v, error %v", exit, err)
	}
}

// TestManyAtOnce: processes that end as soon as they have begun, started from
// several sides at a time; each exit is told once, and none is an orphan's.
func TestManyAtOnce(t *testing.T) {
	const sides, each = 4, 20
	type begun struct {
		pid, code int
	}
	all := make(chan begun, sides*each)
	for side := range sides {
		go func() {
			for i := range each {
				code := (side + i) % 7
				p, err := shared.Start(shell("exit " + strconv.Itoa(code)))
				if err != nil {
					t.Error(err)
					all <- begun{}
					continue
				}
				all <- begun{p.PID, code}
			}
		}()
	}
	want := map[int]int{}
	for range sides * each {
		b := <-all
		want[b.pid] = b.code
	}
	if t.Failed() {
		return
	}
	told := map[int]bool{}
	deadline := time.After(time.Minute)
	for len(told) < len(want) {
		select {
		case x := <-shared.Exits():
			code, ours := want[x.PID]
			if ours && (told[x.PID] || x.Orphan || x.Exit.Unknown || x.Exit.Code != code) {
				t.Errorf("%+v, wanted once with code %d", x, code)
			}
			if ours { // else of a test before
				told[x.PID] = true
			}
		case <-deadline:
			t.Fatalf("%d exits of %d were told", len(told), len(want))
		}
	}
}

// BenchmarkStartToExit is the cost of one short run.
func BenchmarkStartToExit(b *testing.B) {
	q := Request{Group: "b", Command: service.Command{Path: "/bin/true"}}
	for b.Loop() {
		p, err := shared.Start(q)
		if err != nil {
			b.Fatal(err)
		}
		for x := range shared.Exits() {
			if x.PID == p.PID {
				break
			}
		}
	}
}

// TestExecIsKilledWhole: when nobody waits any more, what the command has
// started in another session ends with it.
func TestExecIsKilledWhole(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	out := os.NewFile(uintptr(pipe[0]), "out")
	defer out.Close()
	q := shell("setsid sh -c 'setsid sleep 1000 & echo $!; wait' & wait")
	q.Stdio = &[3]int{pipe[1], pipe[1], pipe[1]}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := shared.Exec(ctx, q, func(int) { unix.Close(pipe[1]) })
		ended <- err
	}()
	var pid int // of what is deepest
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
	// All have the pipe: its end is theirs.
	late := time.AfterFunc(30*time.Second, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	if rest, err := io.ReadAll(out); err != nil || strings.TrimSpace(string(rest)) != "" || !late.Stop() {
		t.Errorf("process %d runs on: %q, %v", pid, rest, err)
	}
}
