package hostd

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"legion.dev/legion/internal/host"
)

// markName is what all marks of host.Processes.Origin begin with.
const markName = "LEGION_PROCESS="

// Origin looks at a process's program before its environment: what is executed
// between the two is then seen as what it has become.
func (p *processes) Origin(pid int, mark string) host.Origin {
	dir := "/proc/" + strconv.Itoa(pid)
	program, err := os.Readlink(dir + "/exe")
	switch {
	case os.IsNotExist(err):
		return host.Stranger // it has ended
	case err != nil:
		return host.Nameless // another user's: its environment cannot be read either
	}
	environ, _ := os.ReadFile(dir + "/environ")
	marked := false
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if string(entry) == mark {
			return host.Heir
		}
		marked = marked || bytes.HasPrefix(entry, []byte(markName))
	}
	own, err := os.Readlink("/proc/self/exe")
	switch {
	case err == nil && strings.TrimSuffix(own, " (deleted)") == strings.TrimSuffix(program, " (deleted)"):
		return host.Unborn // a fork has the environment of legiond, too
	case len(environ) == 0 && executing(dir):
		return host.Unborn
	case marked:
		return host.Stranger
	}
	return host.Nameless
}

// executing says whether a process is in the middle of exec: it has a program
// already and no environment yet (env_end of proc(5), /proc/PID/stat).
func executing(dir string) bool {
	data, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return false
	}
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	const state, envEnd = 0, 48
	return len(fields) > envEnd && string(fields[envEnd]) == "0" && fields[state][0] != 'Z' && fields[state][0] != 'X'
}
