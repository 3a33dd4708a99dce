package host

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/machine"
)

// What services say of themselves, and leave with the service manager
// (sd_notify(3)).

func (h *Host) notified(m Message) {
	if _, known := h.owners[m.PID]; !known && h.spawning > 0 && len(h.earlyNotes) < 1024 {
		h.earlyNotes = append(h.earlyNotes, m)
		return
	}
	// A sender at a barrier goes on once its message has been dealt with.
	defer func() { closeAll(m.FDs) }()
	u := h.sender(m)
	if u == nil {
		h.o.Log.Debug("a message of a process that belongs to no service", "pid", m.PID)
		return
	}
	if machine.Accepts(u.config(), u.in, m.PID) {
		if m.Remove {
			h.dropFiles(u, m.Name)
		}
		if m.Store {
			m.FDs = h.keepFiles(u, m.Name, m.FDs)
		}
	}
	h.step(u, machine.Event{Kind: machine.Notified, PID: m.PID, Note: m.Note})
}

// sender finds the service that a process belongs to, or did until it ended.
func (h *Host) sender(m Message) *unit {
	if o, ok := h.owners[m.PID]; ok {
		return o.u
	}
	if path, ok := h.o.Cgroups.ByID(m.CgroupID); ok && m.CgroupID != 0 {
		name, _, _ := strings.Cut(path, "/")
		if g := h.groups[name]; g != nil {
			for _, u := range g.services {
				if u.cgroup == path {
					return u
				}
			}
		}
	}
	units, paths := map[string]*unit{}, []string{}
	for _, g := range h.groups {
		for _, u := range g.services {
			units[u.cgroup] = u
			paths = append(paths, u.cgroup)
		}
	}
	path, _ := h.o.Cgroups.Of(m.PID, paths)
	return units[path]
}

// said puts a line from /dev/log or for systemd's journal to the others of the
// service whose process has sent it, or into the log of those outside of units.
func (h *Host) said(l SyslogLine) {
	u := h.sender(Message{PID: l.PID, CgroupID: l.CgroupID})
	if u == nil {
		if err := h.o.Logs.Write(hostapi.Outside, hostapi.Outside, l.Text); err != nil {
			h.o.Log.Info(l.Text, "pid", l.PID, "by", "syslog", "error", err)
		}
		return
	}
	if err := h.o.Logs.Write(u.g.spec.Name, u.spec.Name, l.Text); err != nil {
		h.note(u.g, "cannot keep what it says on /dev/log", err)
	}
}

// keepFiles stores descriptors as far as there is room, each file once, and
// returns the others.
func (h *Host) keepFiles(u *unit, name string, fds []int) (rest []int) {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == ':' }) {
		name = "stored"
	}
	for _, fd := range fds {
		if len(u.kept) >= u.spec.FDStoreMax || slices.ContainsFunc(u.kept, func(f File) bool { return sameFile(f.FD, fd) }) {
			rest = append(rest, fd)
			continue
		}
		f := File{Name: name, FD: fd}
		u.kept = append(u.kept, f)
		h.o.Keeper.Put(keptKey(u.cgroup), f)
	}
	return rest
}

// sameFile says whether both descriptors are of one open file (kcmp(2)): a
// service may give it again, and a message may come twice where legiond was
// killed while it dealt with it.
func sameFile(a, b int) bool {
	const kcmpFile = 0
	pid := uintptr(unix.Getpid())
	order, _, e := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return e == 0 && order == 0
}

// dropFiles closes the descriptors that are kept under the name; empty is all.
func (h *Host) dropFiles(u *unit, name string) {
	var rest []File
	for _, f := range u.kept {
		if name != "" && f.Name != name {
			rest = append(rest, f)
			continue
		}
		unix.Close(f.FD)
	}
	if len(rest) < len(u.kept) {
		h.o.Keeper.Drop(keptKey(u.cgroup), name)
	}
	u.kept = rest
}

// putKept has the keeper hold what it does not yet.
func (h *Host) putKept(u *unit, files []File) {
	if key := keptKey(u.cgroup); !h.o.Keeper.Holds(key) {
		for _, f := range files {
			h.o.Keeper.Put(key, f)
		}
	}
}

// The keys under which the keeper holds what services have left, and the sockets
// of a socket unit.
func keptKey(cgroup string) string { return KeptKey + cgroup }
func socketKey(name string) string { return SocketKey + name }

// Of Handover.Kept, .Sockets and .Consoles, before the path of the cgroup or the
// name of the unit.
const (
	KeptKey    = "kept/"
	SocketKey  = "socket/"
	ConsoleKey = "console/"
)

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
