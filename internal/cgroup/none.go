package cgroup

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/procstat"
)

// tracked is a process that was started for a path: the leader of a session.
type tracked struct {
	pid   int
	ticks int
	// mark is in the environment of the process and of what it starts.
	mark string
}

// seen is what was read of a process's environment once.
type seen struct {
	ticks int
	mark  string
}

// process is what /proc tells of one.
type process struct {
	pid, parent, group, session int
	ticks                       int
	zombie                      bool
	// memory: it has any, unlike those of the kernel.
	memory bool
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
	for path, leaders := range t.tracked {
		switch {
		case len(leaders) == 0:
		case len(t.membersOf(leaders, all)) == 0:
			t.tracked[path] = nil
			empty = append(empty, path)
		case slices.ContainsFunc(leaders, func(l tracked) bool { return l.pid == pid }):
			t.await(path)
		}
	}
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
		if len(t.membersOf(t.tracked[path], processes())) > 0 {
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
	for p, leaders := range t.tracked {
		if p == path || len(p) > len(path) && p[:len(path)+1] == path+"/" {
			pids = append(pids, t.membersOf(leaders, all)...)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// membersOf are the processes in the leaders' sessions, those with a leader's
// mark, and the descendants of both. mu is held.
func (t *Tree) membersOf(leaders []tracked, all map[int]process) []int {
	in := make(map[int]bool)
	marks := make(map[string]bool)
	for _, l := range leaders {
		marks[l.mark] = true
	}
	delete(marks, "")
	for _, p := range all {
		for _, l := range leaders {
			// While a session has a member its number is not given away.
			if p.pid == l.pid && p.ticks == l.ticks || p.session == l.pid || p.group == l.pid {
				in[p.pid] = true
			}
		}
		if len(marks) > 0 && !in[p.pid] && p.pid != os.Getpid() && marks[t.mark(p)] {
			in[p.pid] = true
		}
	}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if !in[p.pid] && in[p.parent] {
				in[p.pid], grown = true, true
			}
		}
	}
	var pids []int
	for pid := range in {
		if !all[pid].zombie {
			pids = append(pids, pid)
		}
	}
	return pids
}

// mark is the INVOCATION_ID of a process, read once in its life. mu is held.
func (t *Tree) mark(p process) string {
	if s, ok := t.marks[p.pid]; ok && s.ticks == p.ticks {
		return s.mark
	}
	if len(t.marks) > 4096 {
		clear(t.marks)
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

// looks bounds how often all processes are looked at where some always end
// meanwhile.
const looks = 4

// processes looks at all processes there are.
func processes() map[int]process { return settled(look) }

// settled looks again where a process has ended since it was listed: it may have
// left a child behind, which was not listed.
func settled(look func() (there map[int]process, over []int)) map[int]process {
	known := make(map[int]bool) // to be over before the list was made
	for n := 1; ; n++ {
		there, over := look()
		again := false
		for _, pid := range over {
			again = again || !known[pid]
			known[pid] = true
		}
		if !again || n == looks {
			return there
		}
	}
}

// look lists the processes and then looks at each; over are those that had ended
// by then.
func look() (there map[int]process, over []int) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	there = make(map[int]process, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		p, ok := readProcess(pid)
		if ok {
			there[pid] = p
		}
		if !ok || p.zombie {
			over = append(over, pid)
		}
	}
	return there, over
}

func readProcess(pid int) (process, bool) {
	s, err := procstat.Read(pid)
	if err != nil {
		return process{}, false
	}
	return process{
		pid: pid, parent: s.Number(procstat.Parent), group: s.Number(procstat.Group), session: s.Number(procstat.Session),
		ticks: s.Number(procstat.StartTime), zombie: s.Over(), memory: s.Number(procstat.Size) != 0,
	}, true
}
