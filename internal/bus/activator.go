package bus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// What a bus that was started with --systemd-activation expects of the service
// manager: it asks the owner of the name to start a unit, and is told only where
// that fails; a success is that the service takes its name.
const (
	managerName = "org.freedesktop.systemd1"
	managerPath = "/org/freedesktop/systemd1"
	activator   = managerName + ".Activator"
)

// Failed is the name of the error that whoever has called a service is given if
// its unit does not start (D-Bus Specification, "Message Bus Starting Services").
const Failed = "org.freedesktop.DBus.Error.Spawn.Failed"

// Activation asks for the start of a unit.
type Activation struct {
	Unit string
	conn *dbus.Conn
}

// Fail tells the bus why the unit did not start; it may be called from anywhere.
func (a Activation) Fail(why string) {
	if a.conn != nil { // else it is not from a bus
		_ = a.conn.Send(signalTo("org.freedesktop.DBus", managerPath, activator, "ActivationFailure", a.Unit, Failed, why), nil)
	}
}

// signalTo is a signal for one receiver.
func signalTo(to, path, iface, member string, body ...any) *dbus.Message {
	return &dbus.Message{
		Type: dbus.TypeSignal,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(to), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(path)),
			dbus.FieldInterface: dbus.MakeVariant(iface), dbus.FieldMember: dbus.MakeVariant(member),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
		},
		Body: body,
	}
}

// Activator takes systemd's name on the bus while that is up, and passes on
// which units are to be started.
type Activator struct {
	socket      string
	log         *slog.Logger
	activations chan Activation
	ctx         context.Context
	close       context.CancelFunc

	// lost is how long it waits when it has lost the bus.
	lost time.Duration

	mu sync.Mutex
	// up: the bus is there. leave ends the session of the time it was.
	up    bool
	leave context.CancelFunc
}

// NewActivator is for the bus whose socket is at a path; it connects when it is
// told that the bus is up.
func NewActivator(socket string, log *slog.Logger) *Activator {
	ctx, cancel := context.WithCancel(context.Background())
	return &Activator{socket: socket, log: log, activations: make(chan Activation), ctx: ctx, close: cancel, lost: lastWait, leave: func() {}}
}

// Close gives the name up.
func (a *Activator) Close() { a.close() }

// Activations are what the bus asks for.
func (a *Activator) Activations() <-chan Activation { return a.activations }

// Serve takes the name if the bus is up, and connects to nothing if it is not:
// a connection would have the socket's unit start it.
func (a *Activator) Serve(up bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.up == up {
		return
	}
	a.up = up
	if !up {
		a.leave()
		return
	}
	ctx, cancel := context.WithCancel(a.ctx)
	a.leave = cancel
	go a.run(ctx)
}

// run holds the name until ctx ends. A bus that has just come up may not be
// listening yet, and one may go and come again without a word. But one that has
// gone has mostly ended, of which whoever calls Serve has yet to hear; to connect
// before that would start it again.
func (a *Activator) run(ctx context.Context) {
	said := ""
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		err := a.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			wait = a.lost
		} else if said != err.Error() {
			said = err.Error()
			a.log.Warn("units are not started for messages on the system bus", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// session serves on one connection; the error is why it did not get that far.
func (a *Activator) session(ctx context.Context) error {
	conn, err := connectTo(ctx, a.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	signals := make(chan *dbus.Signal, 64)
	conn.Signal(signals)
	reply, err := conn.RequestName(managerName, dbus.NameFlagDoNotQueue)
	if err != nil {
		return fmt.Errorf("cannot take the name %s: %w", managerName, err)
	}
	if reply != dbus.RequestNameReplyPrimaryOwner {
		return fmt.Errorf("another program has the name %s", managerName)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, ok := <-signals:
			if !ok {
				return nil
			}
			if unit, ok := asked(s); ok {
				select {
				case a.activations <- Activation{unit, conn}:
				case <-ctx.Done():
					return nil
				}
			}
		}
	}
}

// asked is the unit that the bus itself asks for.
func asked(s *dbus.Signal) (string, bool) {
	if s.Sender != "org.freedesktop.DBus" || s.Name != activator+".ActivationRequest" || len(s.Body) != 1 {
		return "", false
	}
	unit, ok := s.Body[0].(string)
	return unit, ok
}
