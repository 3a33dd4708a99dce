package hostd

import (
	"errors"

	"legion.dev/legion/internal/bus"
	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/listen"
	"legion.dev/legion/internal/pathwatch"
	"legion.dev/legion/internal/service"
)

// listening is package listen as the loop wants it.
type listening struct{ *listen.Watch }

func (listening) Open(s *service.Socket) ([]int, error)         { return listen.Open(s) }
func (listening) Take(s *service.Socket, pid int) ([]int, bool) { return listen.Take(s, pid) }
func (listening) Close(s *service.Socket, fds []int) error      { return listen.Close(s, fds) }
func (listening) Accept(fd int) (conn int, ends string, err error) {
	conn, ends, err = listen.Accept(fd)
	if errors.Is(err, listen.ErrNone) {
		err = host.ErrNone
	}
	return conn, ends, err
}

// paths is package pathwatch as the loop wants it.
type paths struct {
	w       *pathwatch.Watch
	changes chan host.PathChange
}

func newPaths(w *pathwatch.Watch) paths {
	p := paths{w, make(chan host.PathChange, 16)}
	go func() {
		for c := range w.Changes() {
			p.changes <- host.PathChange(c)
		}
	}()
	return p
}

func (p paths) Watch(name string, spec *service.Path) error { return p.w.Watch(name, spec) }
func (p paths) Forget(name string)                          { p.w.Forget(name) }

func (p paths) Changes() <-chan host.PathChange { return p.changes }

// names is package bus as the loop wants it; the activator is nil where legiond
// does not stand in for systemd.
type names struct {
	*bus.Bus
	*bus.Activator
	changes     chan host.NameChange
	activations chan host.Activation
}

func newNames(b *bus.Bus, a *bus.Activator) names {
	n := names{b, a, make(chan host.NameChange), make(chan host.Activation)}
	go func() {
		for c := range b.Changes() {
			n.changes <- host.NameChange(c)
		}
	}()
	if a != nil {
		go func() {
			for x := range a.Activations() {
				n.activations <- host.Activation{Unit: x.Unit, Fail: x.Fail}
			}
		}()
	}
	return n
}

func (n names) Serve(up bool) {
	if n.Activator != nil {
		n.Activator.Serve(up)
	}
}

func (n names) Activations() <-chan host.Activation { return n.activations }

func (n names) Changes() <-chan host.NameChange { return n.changes }
