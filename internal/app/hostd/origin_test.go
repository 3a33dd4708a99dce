package hostd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/sandbox"
)

// TestOrigin: a process is known by its program and its environment.
func TestOrigin(t *testing.T) {
	const mark = markName + "a.1"
	for name, test := range map[string]struct {
		env  []string
		path string
		want host.Origin
	}{
		"its own":          {[]string{"X=1", mark}, "/bin/cat", host.Heir},
		"another start's":  {[]string{markName + "a.2"}, "/bin/cat", host.Stranger},
		"without its name": {[]string{"X=1"}, "/bin/cat", host.Nameless},
		"with nothing":     {[]string{}, "/bin/cat", host.Nameless},
		"between fork and exec": {
			[]string{markName + "outer.1", "LEGION_TEST_DAEMON=cat"}, "/proc/self/exe", host.Unborn,
		},
		"legiond as a service": {[]string{mark, "LEGION_TEST_DAEMON=cat"}, "/proc/self/exe", host.Heir},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, end := running(t, test.path, test.env)
			p := &processes{}
			if got := p.Origin(cmd.Process.Pid, mark); got != test.want {
				t.Errorf("it is %v, want %v", got, test.want)
			}
			end()
			if got := p.Origin(cmd.Process.Pid, mark); got != host.Gone {
				t.Errorf("after its end it is %v", got)
			}
		})
	}
}

// running starts a program that gives back what it reads, and waits until it
// does.
func running(t *testing.T, path string, env []string) (cmd *exec.Cmd, end func()) {
	t.Helper()
	cmd = exec.Command(path)
	cmd.Env = env
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return cmd, func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInvocations: what is on the way to its program is waited for.
func TestInvocations(t *testing.T) {
	const id = "0123456789abcdef-of-this-test"
	cmd, end := running(t, "/bin/cat", []string{"A=1", "INVOCATION_ID=" + id})
	defer end()
	if got := (&processes{}).Invocations()[id]; !slices.Equal(got, []int{cmd.Process.Pid}) {
		t.Errorf("they are %v, want %d", got, cmd.Process.Pid)
	}
	dir := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
	if settingUp(dir) {
		t.Error("it runs and is taken for one that does not yet")
	}
	late := t.TempDir()
	if err := os.WriteFile(late+"/cmdline", []byte(sandbox.Argv0+"\x00a.service\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !settingUp(late) {
		t.Error("package sandbox is not known")
	}
}

// TestForked: a legiond that is killed leaves behind what it has just forked.
func TestForked(t *testing.T) {
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		program string
		threads int
		want    bool
	}{{own, 1, true}, {own, 9, false}, {"/bin/cat", 1, false}} {
		dir := t.TempDir()
		stat := fmt.Sprintf("7 (legiond) S 1 7 7%s %d%s", strings.Repeat(" 5", 13), test.threads, strings.Repeat(" 5", 32))
		if err := errors.Join(os.Symlink(test.program, dir+"/exe"), os.WriteFile(dir+"/stat", []byte(stat), 0o600)); err != nil {
			t.Fatal(err)
		}
		if got := settingUp(dir); got != test.want {
			t.Errorf("%s of %d threads: %v", test.program, test.threads, got)
		}
	}
}

// TestExecuting reads env_end where proc(5) has it.
func TestExecuting(t *testing.T) {
	if executing("/proc/self") {
		t.Error("this process has an environment")
	}
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	fields[48] = "0"
	if err := os.WriteFile(dir+"/stat", []byte("1 (a) b) "+strings.Join(fields, " ")), 0o600); err != nil {
		t.Fatal(err)
	}
	if !executing(dir) {
		t.Error("without the end of an environment a process is in exec")
	}
}
