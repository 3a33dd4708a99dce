package hostd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"

	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/journald"
	"legion.dev/legion/internal/syslog"
)

// sayings are packages syslog and journald as the loop wants them; each is nil
// where legiond does not serve its sockets.
type sayings struct {
	log     *syslog.Socket
	journal *journald.Sockets
	lines   chan host.SyslogLine
}

// sayings serves /dev/log and the sockets of systemd's journal where legiond
// stands in for systemd, and nobody else does so.
func (l *legacy) sayings(o Options, log *slog.Logger) sayings {
	var out sayings
	if !o.StandIn && os.Getpid() != 1 {
		return out
	}
	var before *os.File
	var journal *journald.Handover
	if l != nil {
		journal = l.Journal
		if l.Syslog > 0 {
			before = os.NewFile(uintptr(l.Syslog), "syslog")
		}
	}
	tell := func(err error) {
		level := slog.LevelWarn
		if errors.Is(err, syslog.ErrServed) || errors.Is(err, journald.ErrServed) {
			level = slog.LevelInfo
		}
		log.Log(context.Background(), level, "what programs say there is not in the logs", "error", err)
	}
	out.lines = make(chan host.SyslogLine)
	var work sync.WaitGroup
	if s, err := syslog.Open(syslog.Standard, before); err != nil {
		tell(err)
	} else {
		out.log = s
		work.Go(func() { pass(s.Lines(), out.lines) })
	}
	if s, err := journald.Open(journald.Standard, journal); err != nil {
		tell(err)
	} else {
		out.journal = s
		work.Go(func() { pass(s.Lines(), out.lines) })
	}
	go func() {
		work.Wait()
		close(out.lines)
	}()
	return out
}

func pass[L syslog.Line | journald.Line](from <-chan L, to chan<- host.SyslogLine) {
	for l := range from {
		to <- host.SyslogLine(l)
	}
}

func (s sayings) close() {
	if s.log != nil {
		s.log.Close()
	}
	if s.journal != nil {
		s.journal.Close()
	}
}

// port is nil where nothing is served: then nothing ends Lines.
func (s sayings) port() host.Syslog {
	if s.log == nil && s.journal == nil {
		return nil
	}
	return s
}

func (s sayings) Lines() <-chan host.SyslogLine { return s.lines }

func (s sayings) Suspend() {
	if s.log != nil {
		s.log.Suspend()
	}
	if s.journal != nil {
		s.journal.Suspend()
	}
}

// leave writes down in l what the next program in this process goes on with, and
// gives the descriptors.
func (s sayings) leave(l *legacy) (fds []int, err error) {
	if s.log != nil {
		if l.Syslog, err = s.log.FD(); err != nil {
			return nil, err
		}
		fds = append(fds, l.Syslog)
	}
	if s.journal != nil {
		h, err := s.journal.Handover()
		if err != nil {
			return nil, err
		}
		l.Journal = &h
		fds = append(fds, h.FDs()...)
	}
	return fds, nil
}
