package hostd

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/syslog"
)

// sayings is package syslog as the loop wants it; s is nil where legiond does
// not serve /dev/log.
type sayings struct {
	s     *syslog.Socket
	lines chan host.SyslogLine
}

// syslog serves /dev/log where legiond stands in for systemd, and nobody else
// does so.
func (l *legacy) syslog(o Options, log *slog.Logger) sayings {
	if !o.StandIn && os.Getpid() != 1 {
		return sayings{}
	}
	var before *os.File
	if l != nil && l.Syslog > 0 {
		before = os.NewFile(uintptr(l.Syslog), "syslog")
	}
	s, err := syslog.Open(syslog.Standard, before)
	if err != nil {
		level := slog.LevelWarn
		if errors.Is(err, syslog.ErrServed) {
			level = slog.LevelInfo
		}
		log.Log(context.Background(), level, "what programs say by syslog(3) is not in the journal", "error", err)
		return sayings{}
	}
	out := sayings{s, make(chan host.SyslogLine)}
	go func() {
		defer close(out.lines)
		for l := range s.Lines() {
			out.lines <- host.SyslogLine(l)
		}
	}()
	return out
}

func (s sayings) close() {
	if s.s != nil {
		s.s.Close()
	}
}

func (s sayings) port() host.Syslog {
	if s.s == nil {
		return nil
	}
	return s
}

func (s sayings) Lines() <-chan host.SyslogLine { return s.lines }
func (s sayings) Suspend()                      { s.s.Suspend() }
