package cgroup

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tracked is a process that was started for a path: the leader of a session.
type tracked struct {
	pid   int // 0 once its number may be given away
	ticks int
	// mark is in the environment of the process and of what it starts.
	mark string
}

// seen is what was read of a process's environment once.
type seen struct {
	ticks int
	mark  string
}

// Track tells the Tree which process was started for a path, with which
// INVOCATION_ID in its environment. It matters in mode None only, where a
// path's processes are the sessions, the descendants and the heirs of the
// environment of those started for it.
func (t *Tree) Track(path string, pid int, invocation string) {
	if t.root != "" {
		return
	}
	p, ok := readProcess(pid)
	if !ok {
		p = process{pid: pid}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tracked[path] = append(t.tracked[path], tracked{pid, p.ticks, invocation})
	if ok && p.parent != os.Getpid() {
		t.await(path) // of its end nobody else tells
	}
}

// Exited tells the Tree that a process has ended, also an orphan. It matters in
// mode None only, where nobody else tells that a path has run empty.
func (t *Tree) Exited(pid int) {
	if t.root != "" {
		return
	}
	all := processes()
	t.mu.Lock()
	var empty []string
	members := t.membersOf(all, func(string) bool { return true })
	for path, leaders := range t.tracked {
		switch {
		case len(leaders) == 0:
		case len(members[path]) == 0:
			t.tracked[path] = nil
			empty = append(empty, path)
		case slices.ContainsFunc(leaders, func(l tracked) bool { return l.pid == pid }):
			t.await(path)
		}
	}
	t.forgetEnded(all)
	t.mu.Unlock()
	if len(empty) > 0 {
		go func() {
			for _, path := range empty {
				t.tell(path)
			}
		}()
	}
}

// await tells once no process of a path is left. Those that are not children
// (of a legiond that was killed they have gone to PID 1) give no other sign of
// their end. mu is held.
func (t *Tree) await(path string) {
	if t.awaited[path] {
		return
	}
	t.awaited[path] = true
	go func() {
		for _, pid := range t.members(path) {
			t.outlive(pid)
		}
		t.mu.Lock()
		delete(t.awaited, path)
		if len(t.membersOf(processes(), func(p string) bool { return p == path })) > 0 {
			select {
			case <-t.closed:
			default:
				t.await(path) // born meanwhile
			}
			t.mu.Unlock()
			return
		}
		t.mu.Unlock()
		t.tell(path)
	}()
}

// outlive waits until a process has ended, whoever is to collect it, or until
// the Tree is closed. It costs no thread.
func (t *Tree) outlive(pid int) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return // it is gone
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return
	}
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-t.closed:
			_ = f.SetReadDeadline(time.Unix(1, 0))
		case <-stop:
		}
	}()
	_ = conn.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

func (t *Tree) members(path string) []int {
	all := processes()
	t.mu.Lock()
	defer t.mu.Unlock()
	var pids []int
	for _, list := range t.membersOf(all, func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") }) {
		pids = append(pids, list...)
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// membersOf sorts the processes that have not ended by path: those in the
// leaders' sessions and groups, those with a leader's mark, and the descendants of
// both. mu is held.
func (t *Tree) membersOf(all map[int]process, wanted func(path string) bool) map[string][]int {
	c := claims{all: all, numbers: make(map[int][]claim), marks: make(map[string]string)}
	for path, leaders := range t.tracked {
		if wanted(path) {
			c.add(path, leaders)
		}
	}
	first := make(map[int][]string)
	for _, p := range all {
		if paths := c.of(p); len(paths) > 0 {
			first[p.pid] = paths
		} else if len(c.marks) > 0 && p.pid != os.Getpid() {
			if path, ok := c.marks[t.mark(p)]; ok {
				first[p.pid] = []string{path}
			}
		}
	}
	members := make(map[string][]int)
	for _, p := range all {
		if p.zombie {
			continue
		}
		// Up its line, which a number that was given away may make a circle.
		for q, ok, n := p, true, 0; ok && n < len(all); n++ {
			for _, path := range first[q.pid] {
				if m := members[path]; len(m) == 0 || m[len(m)-1] != p.pid {
					members[path] = append(m, p.pid)
				}
			}
			q, ok = all[q.parent]
		}
	}
	return members
}

// claims are by which numbers and marks processes belong to paths.
type claims struct {
	all     map[int]process
	numbers map[int][]claim
	marks   map[string]string
}

type claim struct {
	path  string
	ticks int
}

func (c *claims) add(path string, leaders []tracked) {
	for _, l := range leaders {
		if l.pid != 0 {
			c.numbers[l.pid] = append(c.numbers[l.pid], claim{path, l.ticks})
		}
		if l.mark != "" {
			c.marks[l.mark] = path
		}
	}
}

// of are the paths whose leader the process is, or in whose session or group.
func (c *claims) of(p process) (paths []string) {
	for i, number := range [...]int{p.pid, p.session, p.group} {
		for _, l := range c.numbers[number] {
			// While a session has a member its number is not given away; a leader
			// that left its own may have been the last.
			if q, there := c.all[number]; (there && q.ticks == l.ticks || !there && i > 0) && !slices.Contains(paths, l.path) {
				paths = append(paths, l.path)
			}
		}
	}
	return paths
}

// forgetEnded forgets the numbers of leaders that have ended with their sessions
// and groups: they will be others'. mu is held.
func (t *Tree) forgetEnded(all map[int]process) {
	used := make(map[int]bool, len(all))
	for _, p := range all {
		used[p.pid], used[p.session], used[p.group] = true, true, true
	}
	delete(used, 0) // of the kernel's own
	for path, leaders := range t.tracked {
		marked := make(map[string]bool)
		t.tracked[path] = slices.DeleteFunc(leaders, func(l tracked) bool {
			known := l.mark == "" || marked[l.mark]
			marked[l.mark] = true
			return !used[l.pid] && known
		})
		for i, l := range t.tracked[path] {
			if !used[l.pid] {
				t.tracked[path][i].pid = 0
			}
		}
	}
	maps.DeleteFunc(t.marks, func(pid int, _ seen) bool { return !used[pid] })
}

// mark is the INVOCATION_ID of a process, read once in its life. mu is held.
func (t *Tree) mark(p process) string {
	if s, ok := t.marks[p.pid]; ok && s.ticks == p.ticks {
		return s.mark
	}
	s := seen{ticks: p.ticks}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/environ")
	if err == nil && len(data) == 0 && p.memory {
		return "" // in the middle of exec; another user's cannot be read at all
	}
	for entry := range bytes.SplitSeq(data, []byte{0}) {
		if id, ok := bytes.CutPrefix(entry, []byte("INVOCATION_ID=")); ok {
			s.mark = string(id)
		}
	}
	t.marks[p.pid] = s
	return s.mark
}
