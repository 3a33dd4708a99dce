package hostd

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/procstat"
	"legion.dev/legion/internal/sandbox"
)

// markName is what all marks of host.Processes.Origin begin with.
const markName = "LEGION_PROCESS="

// Origin looks at a process's program before its environment: what is executed
// between the two is then seen as what it has become.
func (p *processes) Origin(pid int, mark string) host.Origin {
	dir := "/proc/" + strconv.Itoa(pid)
	program, err := os.Readlink(dir + "/exe")
	if err != nil {
		return namelessOrGone(dir) // another user's: its environment cannot be read either
	}
	environ, _ := os.ReadFile(dir + "/environ")
	if len(environ) == 0 && !executing(dir) {
		environ, _ = os.ReadFile(dir + "/environ") // it was, until now
	}
	marked := false
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if string(entry) == mark {
			return host.Heir
		}
		marked = marked || bytes.HasPrefix(entry, []byte(markName))
	}
	switch {
	case isOwn(program):
		return host.Unborn // a fork has the environment of legiond, too
	case len(environ) == 0 && executing(dir):
		return host.Unborn
	case marked:
		return host.Stranger
	}
	return namelessOrGone(dir)
}

// isOwn says whether a program is the one that this process runs.
func isOwn(program string) bool {
	own, err := os.Readlink("/proc/self/exe")
	return err == nil && strings.TrimSuffix(own, " (deleted)") == strings.TrimSuffix(program, " (deleted)")
}

// namelessOrGone is for a process without a mark to be read: one that has ended
// has none.
func namelessOrGone(dir string) host.Origin {
	if st, err := procstat.ReadFile(filepath.Join(dir, "stat")); err != nil || st.Over() {
		return host.Gone
	}
	return host.Nameless
}

// executing says whether a process is in the middle of exec: it has a program
// already and no environment yet (env_end of proc(5)).
func executing(dir string) bool {
	st, err := procstat.ReadFile(filepath.Join(dir, "stat"))
	return err == nil && st.Has(procstat.EnvEnd) && st.Number(procstat.EnvEnd) == 0 && !st.Over()
}

// birthWait bounds how long Invocations waits for what is on the way to its program.
const birthWait = 2 * time.Second

// Invocations looks twice, and again as long as there is more to be found: while
// it looks, processes start others, which it has not listed, and end before it
// has read what they are.
func (p *processes) Invocations() map[string][]int {
	byID, known := map[string][]int{}, map[int]bool{}
	late := time.Now().Add(birthWait)
	for first, grown := true, true; first || grown; first = false {
		grown = first
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil || known[pid] {
				continue
			}
			if id := invocation(dir, late); id != "" {
				byID[id] = append(byID[id], pid)
				known[pid], grown = true, true
			}
		}
	}
	return byID
}

// invocation is the INVOCATION_ID of a process, once it has executed its
// program.
func invocation(dir string, late time.Time) string {
	for settingUp(dir) && time.Now().Before(late) {
		time.Sleep(time.Millisecond)
	}
	data, _ := os.ReadFile(dir + "/environ") // another user's cannot be read
	for entry := range bytes.SplitSeq(data, []byte{0}) {
		if id, ok := bytes.CutPrefix(entry, []byte("INVOCATION_ID=")); ok {
			return string(id)
		}
	}
	return ""
}

// settingUp says whether a process is on the way to the program of a service:
// forked, in exec, or in what package sandbox does before.
func settingUp(dir string) bool {
	if data, err := os.ReadFile(dir + "/cmdline"); err == nil && bytes.HasPrefix(data, []byte(sandbox.Argv0+"\x00")) {
		return true
	}
	program, err := os.Readlink(dir + "/exe") // which a process of the kernel has not
	return err == nil && (executing(dir) || isOwn(program) && alone(dir))
}

// alone says whether a process is of one thread. No legiond is, beyond its first
// moment, and one that it has forked is until it executes its program.
func alone(dir string) bool {
	st, err := procstat.ReadFile(filepath.Join(dir, "stat"))
	return err == nil && st.Number(procstat.Threads) == 1 && !st.Over()
}
