// Package bus tells which names on the system bus have an owner, for services
// of Type=dbus, and takes the bus's requests to start units.
package bus

import (
	"context"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// DefaultSocket is where the system bus is.
const DefaultSocket = "/run/dbus/system_bus_socket"

// Change tells whether a name has an owner.
type Change struct {
	Name  string
	Owned bool
}

// Bus watches names. It connects while there are any, and again when it has
// lost the connection.
type Bus struct {
	socket  string
	changes chan Change
	ctx     context.Context
	close   context.CancelFunc

	mu sync.Mutex
	// asked are the names to watch; true are those whose owner is to be told.
	asked   map[string]bool
	wake    chan struct{}
	running bool
}

// New watches the bus whose socket is at a path; it connects when it must.
func New(socket string) *Bus {
	ctx, cancel := context.WithCancel(context.Background())
	return &Bus{socket: socket, changes: make(chan Change, 16), ctx: ctx, close: cancel, asked: map[string]bool{}, wake: make(chan struct{}, 1)}
}

// Close ends the connection.
func (b *Bus) Close() { b.close() }

// Changes tells of the names that are watched.
func (b *Bus) Changes() <-chan Change { return b.changes }

// Watch tells whether the name has an owner, now and whenever that changes. It
// is false where there is no system bus.
func (b *Bus) Watch(name string) bool {
	if st, err := os.Stat(b.socket); err != nil || st.Mode()&os.ModeSocket == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked[name] = true
	b.nudge()
	if !b.running {
		b.running = true
		go b.run()
	}
	return true
}

// Forget tells no more of the name.
func (b *Bus) Forget(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.asked, name)
	b.nudge()
}

func (b *Bus) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Between two attempts to connect.
const (
	firstWait = 50 * time.Millisecond
	lastWait  = 2 * time.Second
)

// run holds a connection for as long as a name is asked for.
func (b *Bus) run() {
	wait := firstWait
	for {
		if b.idle() {
			return
		}
		if b.session() {
			wait = firstWait
		}
		select {
		case <-b.ctx.Done():
			return
		case <-time.After(wait):
			wait = min(2*wait, lastWait)
		}
	}
}

// idle says whether nobody asks for a name; then the next who does so connects.
func (b *Bus) idle() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.running = len(b.asked) > 0 && b.ctx.Err() == nil
	for name := range b.asked {
		b.asked[name] = true // nothing is known of it without a connection
	}
	return !b.running
}

// session connects and tells of owners until the connection breaks or nobody
// asks any more. It is false where there was no connection.
func (b *Bus) session() bool {
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel()
	conn, err := connectTo(ctx, b.socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	matched := map[string]bool{}
	for {
		if !b.serve(conn, matched) {
			return true
		}
		select {
		case <-b.ctx.Done():
			return true
		case <-b.wake:
		case s, ok := <-signals:
			if !ok {
				return true
			}
			b.signal(s)
		}
	}
}

// connectTo makes a connection that ends with ctx.
func connectTo(ctx context.Context, socket string) (*dbus.Conn, error) {
	conn, err := dbus.Dial("unix:path="+dbus.EscapeBusAddressValue(socket), dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		return nil, err
	}
	if err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err == nil {
		err = conn.Hello()
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// serve brings what is watched on the connection to what is asked for. It is
// false where that is nothing any more, or the connection is broken.
func (b *Bus) serve(conn *dbus.Conn, matched map[string]bool) bool {
	b.mu.Lock()
	var ask, drop []string
	for name, due := range b.asked {
		if due {
			ask = append(ask, name)
			b.asked[name] = false
		}
	}
	for name := range matched {
		if _, ok := b.asked[name]; !ok {
			drop = append(drop, name)
		}
	}
	nobody := len(b.asked) == 0
	b.mu.Unlock()
	if nobody {
		return false
	}
	for _, name := range drop {
		if conn.RemoveMatchSignal(match(name)...) != nil {
			return false
		}
		delete(matched, name)
	}
	for _, name := range ask {
		if !matched[name] && conn.AddMatchSignal(match(name)...) != nil {
			return false
		}
		matched[name] = true
		var owned bool
		if err := conn.BusObject().CallWithContext(b.ctx, "org.freedesktop.DBus.NameHasOwner", 0, name).Store(&owned); err != nil {
			return false
		}
		b.tell(Change{name, owned})
	}
	return true
}

func match(name string) []dbus.MatchOption {
	return []dbus.MatchOption{
		dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, name),
	}
}

// signal takes in NameOwnerChanged(name, old owner, new owner).
func (b *Bus) signal(s *dbus.Signal) {
	if s.Name != "org.freedesktop.DBus.NameOwnerChanged" || s.Sender != "org.freedesktop.DBus" || len(s.Body) != 3 {
		return
	}
	name, ok1 := s.Body[0].(string)
	owner, ok2 := s.Body[2].(string)
	if !ok1 || !ok2 {
		return
	}
	b.mu.Lock()
	_, asked := b.asked[name]
	b.mu.Unlock()
	if asked {
		b.tell(Change{name, owner != ""})
	}
}

func (b *Bus) tell(c Change) {
	select {
	case b.changes <- c:
	case <-b.ctx.Done():
	}
}
