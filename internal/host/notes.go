package host

import (
	"strings"

	"golang.org/x/sys/unix"

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
			u.forget(m.Name)
		}
		if m.Store {
			m.FDs = u.keep(m.Name, m.FDs)
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

// said puts a line from /dev/log to the others of the service whose process has
// sent it, or into legiond's own log.
func (h *Host) said(l SyslogLine) {
	u := h.sender(Message{PID: l.PID, CgroupID: l.CgroupID})
	if u == nil {
		h.o.Log.Info(l.Text, "pid", l.PID, "by", "syslog")
		return
	}
	if err := h.o.Logs.Write(u.g.spec.Name, u.spec.Name, l.Text); err != nil {
		h.note(u.g, "cannot keep what it says on /dev/log", err)
	}
}

// keep stores descriptors as far as there is room, and returns the others.
func (u *unit) keep(name string, fds []int) []int {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == ':' }) {
		name = "stored"
	}
	for len(fds) > 0 && len(u.kept) < u.spec.FDStoreMax {
		u.kept = append(u.kept, File{Name: name, FD: fds[0]})
		fds = fds[1:]
	}
	return fds
}

// forget closes the descriptors that are kept under the name; empty is all.
func (u *unit) forget(name string) {
	var rest []File
	for _, f := range u.kept {
		if name != "" && f.Name != name {
			rest = append(rest, f)
			continue
		}
		unix.Close(f.FD)
	}
	u.kept = rest
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
