package pods

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/podspec"
)

// errFound ends a watch that has brought what was looked for.
var errFound = errors.New("found")

// running is a container's process as the host knows it: the pod may run a
// moment before there is one.
func (s *script) running(pod, container string) (pid int, err error) {
	p := s.last(pod)
	if p == nil {
		return 0, fmt.Errorf("nothing was seen of pod %s", pod)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err = s.fleet.host.Watch(ctx, func(e hostapi.Event) error {
		if e.Name != podspec.GroupName(p.UID) || e.Group == nil {
			return nil
		}
		for _, st := range e.Group.Status.Services {
			if m := st.Main; (container == "" || st.Name == container) && m != nil && m.PID != 0 && m.Exit == nil {
				pid = m.PID
				return errFound
			}
		}
		return nil
	})
	if errors.Is(err, errFound) {
		return pid, nil
	}
	return 0, fmt.Errorf("container %s of pod %s has no process: %w", container, pod, err)
}

// process puts the number of a container's process on the node into a variable,
// and into VARIABLE_INSIDE the one it has in its own namespace:
// process VARIABLE POD[/CONTAINER]
func process(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: process VARIABLE POD[/CONTAINER]")
	}
	pod, container, _ := strings.Cut(args[1], "/")
	pid, err := of(ts).running(pod, container)
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(pid))
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	ts.Check(err)
	for line := range strings.Lines(string(text)) {
		if list, ok := strings.CutPrefix(line, "NSpid:"); ok {
			numbers := strings.Fields(list)
			ts.Setenv(args[0]+"_INSIDE", numbers[len(numbers)-1])
		}
	}
}

// signal signals a process: signal NUMBER PID
func signal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: signal NUMBER PID")
	}
	number, err := strconv.Atoi(args[0])
	ts.Check(err)
	pid, err := strconv.Atoi(args[1])
	ts.Check(err)
	if pid <= 1 {
		ts.Fatalf("%d is no process of a pod", pid)
	}
	ts.Check(syscall.Kill(pid, syscall.Signal(number)))
}

// limits reads a file of a process's cgroup, or of one above it:
// cgroup PID VALUE FILE… (memory.max of version 2, memory.limit_in_bytes of 1).
func limits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: cgroup PID VALUE FILE…")
	}
	text, err := os.ReadFile(filepath.Join("/proc", args[0], "cgroup"))
	ts.Check(err)
	var seen []string
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, top := range hierarchies(parts[1]) {
			seen = append(seen, values(top, parts[2], args[2:])...)
		}
	}
	missing, err := match(seen, args[1:2])
	ts.Check(err)
	if len(missing) > 0 {
		ts.Fatalf("no limit is %s: %q", args[1], seen)
	}
}

// values are what files of a cgroup and of those above it say.
func values(top, group string, files []string) []string {
	var out []string
	for ; group != "/" && group != "."; group = filepath.Dir(group) {
		for _, file := range files {
			if value, err := os.ReadFile(filepath.Join(top, group, file)); err == nil {
				out = append(out, words(string(value)))
			}
		}
	}
	return out
}

// hierarchies are where cgroups with these controllers are mounted.
func hierarchies(controllers string) []string {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(table)) {
		before, after, _ := strings.Cut(line, " - ")
		system := strings.Fields(after)
		v2 := controllers == "" && system[0] == "cgroup2"
		v1 := controllers != "" && system[0] == "cgroup" && strings.Contains(","+system[2]+",", ","+strings.Split(controllers, ",")[0]+",")
		if v1 || v2 {
			out = append(out, strings.Fields(before)[4])
		}
	}
	return out
}

// namespaces puts a process's namespaces into variables, as patterns:
// namespaces PREFIX PID
func namespaces(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: namespaces PREFIX PID")
	}
	for _, kind := range []string{"ipc", "mnt", "net", "pid", "uts"} {
		link, err := os.Readlink(filepath.Join("/proc", args[1], "ns", kind))
		ts.Check(err)
		ts.Setenv(args[0]+"_"+strings.ToUpper(kind), regexp.QuoteMeta(link))
	}
}

// mount mounts a file system of the node's: mount DIR
func mount(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: mount DIR")
	}
	ts.Check(unix.Mount("pods", args[0], "tmpfs", 0, ""))
}

// mounted sees to it that the node has something mounted: mounted DIR
func mounted(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mounted DIR")
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	ts.Check(err)
	if strings.Contains(string(table), " "+args[0]+" ") == neg {
		ts.Fatalf("%s in:\n%s", args[0], table)
	}
}
