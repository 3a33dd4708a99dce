package host

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// Sockets opens the sockets of socket units and tells when something waits.
type Sockets interface {
	Open(s *service.Socket) ([]int, error)
	// Take finds what Open has opened before in a process that has it still.
	Take(s *service.Socket, pid int) ([]int, bool)
	Close(s *service.Socket, fds []int) error
	// Arm asks for one word on Ready; Disarm takes that back.
	Arm(name string, fds []int) error
	Disarm(fds []int)
	Ready() <-chan string
	// Accept returns ErrNone where no connection waits.
	Accept(fd int) (conn int, ends string, err error)
}

// ErrNone tells that no connection waits.
var ErrNone = errors.New("no connection waits")

// noSockets is for a host that has none.
type noSockets struct{}

var errNoSockets = errors.New("this host opens no sockets")

func (noSockets) Open(*service.Socket) ([]int, error)           { return nil, errNoSockets }
func (noSockets) Take(*service.Socket, int) ([]int, bool)       { return nil, false }
func (noSockets) Close(*service.Socket, []int) error            { return nil }
func (noSockets) Arm(string, []int) error                       { return errNoSockets }
func (noSockets) Disarm([]int)                                  {}
func (noSockets) Ready() <-chan string                          { return nil }
func (noSockets) Accept(int) (conn int, ends string, err error) { return -1, "", ErrNone }

// sockets is a socket unit that is up.
type sockets struct {
	fds      []int
	state    service.TriggerState
	since    time.Time
	accepted uint64
	last     time.Time
	// trips are when the unit was started by it, polls when it was seen that
	// something waits, inside the interval of each limit.
	trips, polls []time.Time
	// putOff is until when it is not looked at; zero where it is.
	putOff time.Time
}

// Limits of systemd.socket(5) and systemd.path(5), TriggerLimitIntervalSec=.
const (
	tripInterval    = 2 * time.Second
	socketTripBurst = 20
	acceptTripBurst = 200
	pathTripBurst   = 200
	acceptAtOnce    = 64
	// PollLimitIntervalSec=, which is as long.
	socketPollBurst = 15
	acceptPollBurst = 150
)

// limited notes a trip; it reports true where the limit is reached.
func limited(trips *[]time.Time, limit service.StartLimit, burst int, now time.Time) bool {
	interval := limit.Interval
	if interval == 0 {
		interval = tripInterval
	}
	if limit.Burst > 0 {
		burst = limit.Burst
	}
	*trips = slices.DeleteFunc(*trips, func(t time.Time) bool { return now.Sub(t) >= interval })
	if len(*trips) >= burst {
		return true
	}
	*trips = append(*trips, now)
	return false
}

// tooOften notes that something was seen to wait; where that was too often, the
// socket is not looked at for the rest of the interval.
func (k *sockets) tooOften(spec *service.Socket, now time.Time) bool {
	limit, burst := spec.PollLimit, socketPollBurst
	if spec.Accept {
		burst = acceptPollBurst
	}
	if limit.Interval < 0 || limit.Burst < 0 || !limited(&k.polls, limit, burst, now) {
		return false
	}
	if limit.Interval == 0 {
		limit.Interval = tripInterval
	}
	k.putOff = k.polls[0].Add(limit.Interval)
	return true
}

// raiseSocket opens the sockets. A service that runs without them must end
// first: it holds the addresses, or would never hear of them.
func (h *Host) raiseSocket(g *group) string {
	spec := g.spec.Socket
	unit := h.find(spec.Unit)
	if !spec.Accept && unit == nil {
		return fmt.Sprintf("there is no unit %s to start", spec.Unit)
	}
	if !spec.Accept && !unit.idle() {
		return fmt.Sprintf("%s runs already, without these sockets; stop it first", unit.spec.Name)
	}
	fds, err := h.o.Sockets.Open(spec)
	if err != nil {
		return err.Error()
	}
	g.sockets = &sockets{fds: fds}
	h.keepSockets(g)
	h.listen(g)
	return g.broken
}

// keepSockets has the keeper hold the sockets, too: nobody is turned away while
// there is no legiond, and what waits in them is served by the next.
func (h *Host) keepSockets(g *group) {
	key := socketKey(g.spec.Name)
	if h.o.Keeper.Holds(key) {
		return
	}
	for _, fd := range g.sockets.fds {
		h.o.Keeper.Put(key, File{FD: fd})
	}
}

// resumeSocket finds the sockets that an earlier legiond had open: the keeper
// has them, and a service that got them. Where neither does they are opened
// anew, and what waited in them is lost.
func (h *Host) resumeSocket(g *group) {
	spec := g.spec.Socket
	g.sockets = &sockets{}
	if v := h.o.Handover; v != nil {
		if fds := v.Sockets[g.spec.Name]; len(fds) == len(spec.Listen) {
			g.sockets.fds = fds
			h.keepSockets(g)
			h.listen(g)
			return
		}
		closeAll(v.Sockets[g.spec.Name]) // the unit file was changed
		h.o.Keeper.Drop(socketKey(g.spec.Name), "")
	}
	if unit := h.find(spec.Unit); unit != nil && !spec.Accept {
		for _, u := range unit.services {
			if m := u.in.Main; m != nil && m.PID > 0 {
				if fds, ok := h.o.Sockets.Take(spec, m.PID); ok {
					g.sockets.fds = fds
					h.keepSockets(g)
					h.listen(g)
					return
				}
			}
		}
	}
	fds, err := h.o.Sockets.Open(spec)
	if err != nil {
		h.breaks(g, fmt.Sprintf("after a restart of legiond: %v", err))
		return
	}
	g.sockets.fds = fds
	h.keepSockets(g)
	h.listen(g)
}

func (h *Host) lowerSocket(g *group) {
	if g.sockets == nil {
		return
	}
	h.o.Sockets.Disarm(g.sockets.fds)
	h.o.Keeper.Drop(socketKey(g.spec.Name), "")
	if err := h.o.Sockets.Close(g.spec.Socket, g.sockets.fds); err != nil {
		h.note(g, "cannot remove its socket", err)
	}
	g.sockets = nil
}

// breaks ends a timer, path or socket in failure.
func (h *Host) breaks(g *group, why string) {
	g.broken = why
	h.lowerSocket(g)
	h.lowerPath(g)
	g.timer = nil
	h.dirty[g.spec.Name] = struct{}{}
	h.o.Log.Error("a unit that starts another has failed", "group", g.spec.Name, "reason", why)
}

// listen waits for what comes in, or leaves it to the service if that runs.
func (h *Host) listen(g *group) {
	k := g.sockets
	state := service.TriggerListening
	if unit := h.find(g.spec.Socket.Unit); unit != nil && !g.spec.Socket.Accept && (!unit.idle() || unit.job != nil) {
		state = service.TriggerRunning
		h.o.Sockets.Disarm(k.fds)
	} else if k.putOff.IsZero() {
		if err := h.o.Sockets.Arm(g.spec.Name, k.fds); err != nil {
			h.breaks(g, err.Error())
			return
		}
	}
	if k.state != state {
		k.state, k.since = state, h.clock.Real()
		h.dirty[g.spec.Name] = struct{}{}
	}
}

// incoming: something waits on a socket of the unit.
func (h *Host) incoming(name string) {
	g := h.groups[name]
	if g == nil || g.sockets == nil || g.sockets.state != service.TriggerListening || h.closing() {
		return
	}
	k, spec := g.sockets, g.spec.Socket
	if g.goesDown() {
		h.refuse(g)
		return
	}
	if k.tooOften(spec, time.Now()) {
		h.stale = true // the alarm looks again
		return
	}
	if spec.Accept {
		h.accept(g)
		return
	}
	if limited(&k.trips, spec.Limit, socketTripBurst, time.Now()) {
		h.breaks(g, fmt.Sprintf("%s was started too often and took nothing of what waits", spec.Unit))
		return
	}
	k.state, k.since, k.last = service.TriggerRunning, h.clock.Real(), h.clock.Real()
	h.dirty[name] = struct{}{}
	h.trip(g, spec.Unit, fmt.Sprintf("something came in on %s", name))
}

// refuse closes what comes in on a socket that waits for its stop: to start its
// unit would undo that stop, and who connects must not wait for an answer that
// nobody will give. What is no connection is left, and looked at again later.
func (h *Host) refuse(g *group) {
	k := g.sockets
	for _, fd := range k.fds {
		conn, _, err := h.o.Sockets.Accept(fd)
		for ; err == nil; conn, _, err = h.o.Sockets.Accept(fd) {
			unix.Close(conn)
		}
		if !errors.Is(err, ErrNone) {
			k.putOff, h.stale = time.Now().Add(tripInterval), true
		}
	}
	h.listen(g)
}

// accept gives each connection that waits an instance of its own.
func (h *Host) accept(g *group) {
	k, spec := g.sockets, g.spec.Socket
	for _, fd := range k.fds {
		for range acceptAtOnce {
			conn, ends, err := h.o.Sockets.Accept(fd)
			if errors.Is(err, ErrNone) {
				break
			}
			if err != nil {
				h.note(g, "cannot take a connection", err)
				break
			}
			if why := h.handOver(g, conn, ends); why != "" {
				unix.Close(conn)
				h.note(g, "a connection was dropped", errors.New(why))
			}
			if limited(&k.trips, spec.Limit, acceptTripBurst, time.Now()) {
				h.breaks(g, "connections came in faster than its trigger limit allows")
				return
			}
		}
	}
	h.listen(g)
}

// handOver starts an instance for a connection; why says why not.
func (h *Host) handOver(g *group, conn int, ends string) (why string) {
	k, spec := g.sockets, g.spec.Socket
	open, same, from := 0, 0, source(ends)
	for _, o := range h.groups {
		if o.listener == g.spec.Name && !o.idle() {
			open++
			if _, instance, _ := strings.Cut(strings.TrimSuffix(o.spec.Name, ".service"), "@"); source(instance) == from {
				same++
			}
		}
	}
	if spec.MaxConnections > 0 && open >= spec.MaxConnections {
		return fmt.Sprintf("there are %d already (MaxConnections=)", open)
	}
	if most := spec.MaxConnectionsPerSource; most > 0 && from != "" && same >= most {
		return fmt.Sprintf("there are %d from %s already (MaxConnectionsPerSource=)", same, from)
	}
	name, err := unitfile.ReplaceInstance(spec.Unit, fmt.Sprintf("%d-%s", k.accepted, ends))
	if err != nil {
		return err.Error()
	}
	unit := h.demand(name)
	if unit == nil || len(unit.services) != 1 {
		return fmt.Sprintf("there is no unit %s to start", spec.Unit)
	}
	k.accepted++
	k.last = h.clock.Real()
	h.dirty[g.spec.Name] = struct{}{}
	u := unit.services[0]
	u.conn = &File{Name: spec.Name, FD: conn}
	// It is forgotten once it has ended.
	unit.listener, unit.gone = g.spec.Name, true
	h.request(startJob, name, job{by: "a connection to " + g.spec.Name}, func(outcome) { u.hangUp() })
	return ""
}

// source is whom a connection comes from, by the end of its instance's name: an
// address without the port, a VSOCK context, or the user at the other end of a
// socket in the file system. Empty is not known.
func source(ends string) string {
	far := ends[strings.LastIndexByte(ends, '-')+1:]
	if far == "unknown" {
		return ""
	}
	if port := strings.LastIndexByte(far, ':'); port >= 0 {
		return far[:port]
	}
	return far
}

// hangUp closes legiond's end of the connection: the service has its own.
func (u *unit) hangUp() {
	if u.conn != nil {
		unix.Close(u.conn.FD)
		u.conn = nil
	}
}

// passed are the descriptors that a start hands to the service, in the order
// of sd_listen_fds(3): sockets, then what the service has left here.
func (h *Host) passed(u *unit) []File {
	var out []File
	if u.conn != nil {
		out = append(out, *u.conn)
	}
	names := slices.Concat(h.relations().starters[u.g.spec.Name], u.spec.Sockets)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		g := h.find(name)
		if g == nil || g.sockets == nil || g.spec.Socket.Accept {
			continue
		}
		for _, fd := range g.sockets.fds {
			// The flag belongs to the socket, not to the descriptor.
			if err := unix.SetNonblock(fd, u.spec.NonBlocking); err != nil {
				h.note(u.g, "cannot set NonBlocking= on a socket", err)
			}
			out = append(out, File{Name: g.spec.Socket.Name, FD: fd})
		}
	}
	return append(out, u.kept...)
}

func (h *Host) socketNoticed(g, unit *group) {
	if g.spec.Socket.Accept {
		return
	}
	if hit := limitHit(unit); hit != "" && g.sockets.state == service.TriggerRunning {
		h.breaks(g, hit)
		return
	}
	h.listen(g)
}

// limitHit says that the unit may not be started again.
func limitHit(unit *group) string {
	for _, u := range unit.services {
		if u.in.State == service.Failed && u.in.Result == service.StartLimitHit {
			return unit.spec.Name + " was started too often (StartLimitBurst=)"
		}
	}
	return ""
}

// instanceOf says whether the name is an instance of the template.
func instanceOf(name, template string) bool {
	stem, suffix, ok := strings.Cut(template, "@")
	return ok && strings.HasPrefix(name, stem+"@") && strings.HasSuffix(name, suffix)
}

// dup gives a start descriptors of its own: those of the loop may be closed
// before it is done.
func dup(files []File) ([]File, error) {
	var out []File
	for _, f := range files {
		fd, err := unix.FcntlInt(uintptr(f.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			hangUp(out)
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		out = append(out, File{Name: f.Name, FD: fd})
	}
	return out, nil
}

func hangUp(files []File) {
	for _, f := range files {
		unix.Close(f.FD)
	}
}
