package unitfile

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/service"
)

// timerRows are the directives of systemd.timer(5).
var timerRows = []row{
	{names: "OnActiveSec", set: spans(func(t *service.Timer) *[]time.Duration { return &t.OnActive })},
	{names: "OnBootSec", set: spans(func(t *service.Timer) *[]time.Duration { return &t.OnBoot })},
	{names: "OnStartupSec", set: spans(func(t *service.Timer) *[]time.Duration { return &t.OnStartup })},
	{names: "OnUnitActiveSec", set: spans(func(t *service.Timer) *[]time.Duration { return &t.OnUnitActive })},
	{names: "OnUnitInactiveSec", set: spans(func(t *service.Timer) *[]time.Duration { return &t.OnUnitInactive })},
	{names: "OnCalendar", set: onCalendar},
	{names: "OnClockChange", set: boolean(tmr(func(t *service.Timer) *bool { return &t.OnClockChange }))},
	{names: "Persistent", set: boolean(tmr(func(t *service.Timer) *bool { return &t.Persistent }))},
	{names: "RandomizedDelaySec", set: span(tmr(func(t *service.Timer) *time.Duration { return &t.RandomizedDelay }))},
	{names: "FixedRandomDelay", set: boolean(tmr(func(t *service.Timer) *bool { return &t.FixedRandomDelay }))},
	{names: "RemainAfterElapse", set: not(tmr(func(t *service.Timer) *bool { return &t.EndsAfterElapse }))},
	{names: "Unit", set: triggered(tmr(func(t *service.Timer) *string { return &t.Unit }))},
	// Legion elapses at the first instant of the window.
	{names: "AccuracySec", set: span(func(*compiler) *time.Duration { return new(time.Duration) })},
	{names: "OnTimezoneChange", reason: "nothing tells Legion of it"},
	{names: "WakeSystem", reason: "the machine is not woken from suspend; the timer elapses when it is awake"},
	{names: "DeferReactivation", reason: "an elapse that comes while the unit runs is not put off"},
}

// pathRows are the directives of systemd.path(5).
var pathRows = []row{
	{names: "PathExists PathExistsGlob PathChanged PathModified DirectoryNotEmpty", set: watched},
	{names: "MakeDirectory", set: boolean(func(c *compiler) *bool { return &c.group.Path.MakeDirectory })},
	{names: "DirectoryMode", set: octal(func(c *compiler) *uint32 { return &c.group.Path.DirectoryMode })},
	{names: "Unit", set: triggered(func(c *compiler) *string { return &c.group.Path.Unit })},
	{names: "TriggerLimitIntervalSec", set: span(func(c *compiler) *time.Duration { return &c.group.Path.Limit.Interval })},
	{names: "TriggerLimitBurst", set: limitBurst(func(c *compiler) *int { return &c.group.Path.Limit.Burst })},
}

// socketRows are the directives of systemd.socket(5).
var socketRows = []row{
	{names: "ListenStream", set: listens(service.ListenStream)},
	{names: "ListenDatagram", set: listens(service.ListenDatagram)},
	{names: "ListenSequentialPacket", set: listens(service.ListenSeqpkt)},
	{names: "ListenFIFO", set: listens(service.ListenFIFO)},
	{names: "Accept", set: boolean(sock(func(s *service.Socket) *bool { return &s.Accept }))},
	{names: "Service", set: triggered(sock(func(s *service.Socket) *string { return &s.Unit }))},
	{names: "FileDescriptorName", set: fileDescriptorName},
	{names: "SocketUser", set: text(sock(func(s *service.Socket) *string { return &s.User }))},
	{names: "SocketGroup", set: text(sock(func(s *service.Socket) *string { return &s.Group }))},
	{names: "SocketMode", set: octal(sock(func(s *service.Socket) *uint32 { return &s.Mode }))},
	{names: "DirectoryMode", set: octal(sock(func(s *service.Socket) *uint32 { return &s.DirectoryMode }))},
	{names: "RemoveOnStop", set: boolean(sock(func(s *service.Socket) *bool { return &s.RemoveOnStop }))},
	{names: "Symlinks", set: list(sock(func(s *service.Socket) *[]string { return &s.Symlinks }))},
	{names: "MaxConnections", set: limitBurst(sock(func(s *service.Socket) *int { return &s.MaxConnections }))},
	{names: "MaxConnectionsPerSource", set: limitBurst(sock(func(s *service.Socket) *int { return &s.MaxConnectionsPerSource }))},
	{names: "Backlog", set: limitBurst(sock(func(s *service.Socket) *int { return &s.Backlog }))},
	{names: "BindIPv6Only", set: oneOf(sock(func(s *service.Socket) *string { return &s.BindIPv6Only }), "default", "both", "ipv6-only")},
	{names: "FreeBind", set: boolean(sock(func(s *service.Socket) *bool { return &s.FreeBind }))},
	{names: "ReusePort", set: boolean(sock(func(s *service.Socket) *bool { return &s.ReusePort }))},
	{names: "KeepAlive", set: boolean(sock(func(s *service.Socket) *bool { return &s.KeepAlive }))},
	{names: "NoDelay", set: boolean(sock(func(s *service.Socket) *bool { return &s.NoDelay }))},
	{names: "Broadcast", set: boolean(sock(func(s *service.Socket) *bool { return &s.Broadcast }))},
	{names: "PassCredentials", set: boolean(sock(func(s *service.Socket) *bool { return &s.PassCredentials }))},
	{names: "NetworkNamespacePath", set: text(sock(func(s *service.Socket) *string { return &s.NetworkNamespacePath }))},
	{names: "TriggerLimitIntervalSec", set: span(sock(func(s *service.Socket) *time.Duration { return &s.Limit.Interval }))},
	{names: "TriggerLimitBurst", set: limitBurst(sock(func(s *service.Socket) *int { return &s.Limit.Burst }))},
	{names: "PollLimitIntervalSec", set: pollInterval},
	{names: "PollLimitBurst", set: pollBurst},
	{names: "ListenNetlink ListenSpecial ListenMessageQueue ListenUSBFunction", reason: "sockets of this kind are not opened; a unit that has no other does not load"},
	{names: "ExecStartPre", set: commands(func(s *service.Service) *[]service.Command { return &s.StartPre })},
	{names: "ExecStartPost", set: commands(func(s *service.Service) *[]service.Command { return &s.StartPost })},
	{names: "ExecStopPre", set: commands(func(s *service.Service) *[]service.Command { return &s.Stop })},
	{names: "ExecStopPost", set: commands(func(s *service.Service) *[]service.Command { return &s.StopPost })},
	{names: "TimeoutSec", set: timeoutBoth},
	{names: "PassSecurity PassPacketInfo PassPIDFD PassFileDescriptorsToExec AcceptFileDescriptors Timestamping SELinuxContextFromNet SmackLabel SmackLabelIPIn SmackLabelIPOut", reason: "the option of the socket is left at its default"},
	{names: "KeepAliveTimeSec KeepAliveIntervalSec KeepAliveProbes DeferAcceptSec DeferTrigger DeferTriggerMaxSec Priority Mark IPTOS IPTTL ReceiveBuffer SendBuffer PipeSize MessageQueueMaxMessages MessageQueueMessageSize TCPCongestion Transparent BindToDevice SocketProtocol", reason: "the option of the socket is left at its default"},
	{names: "FlushPending Writable USBFunctionDescriptors USBFunctionStrings", reason: "it belongs to kinds of socket, or to a case, that Legion does not have"},
}

func tmr[T any](f func(*service.Timer) *T) func(*compiler) *T {
	return func(c *compiler) *T { return f(c.group.Timer) }
}

func sock[T any](f func(*service.Socket) *T) func(*compiler) *T {
	return func(c *compiler) *T { return f(c.group.Socket) }
}

// spans adds a duration that must end; the empty value resets every OnXXX= of
// the timer (systemd.timer(5)).
func spans(field func(*service.Timer) *[]time.Duration) setter {
	return func(c *compiler, e Entry) error {
		if e.Value == "" {
			c.resetTimes()
			return nil
		}
		var d time.Duration
		if err := delay(func(*compiler) *time.Duration { return &d })(c, e); err != nil {
			return err
		}
		to := field(c.group.Timer)
		*to = append(*to, d)
		return nil
	}
}

func (c *compiler) resetTimes() {
	t := c.group.Timer
	t.OnActive, t.OnBoot, t.OnStartup, t.OnUnitActive, t.OnUnitInactive, t.OnCalendar = nil, nil, nil, nil, nil, nil
}

func onCalendar(c *compiler, e Entry) error {
	if e.Value == "" {
		c.resetTimes()
		return nil
	}
	value, err := c.expand(e.Value)
	if err != nil {
		return err
	}
	x, err := calendar.Parse(value)
	if err == nil {
		c.group.Timer.OnCalendar = append(c.group.Timer.OnCalendar, x.String())
	}
	return err
}

// triggered takes the name of the unit that a timer, path or socket starts.
func triggered(field func(*compiler) *string) setter {
	return func(c *compiler, e Entry) error {
		name, err := c.expand(e.Value)
		if err != nil {
			return err
		}
		if !ValidName(name, AnyName) || name == c.name {
			return fmt.Errorf("%q cannot be the unit to start", name)
		}
		*field(c) = name
		return nil
	}
}

// watched adds a line of a path unit; the empty value resets them all.
func watched(c *compiler, e Entry) error {
	p := c.group.Path
	if e.Value == "" {
		p.Conditions = nil
		return nil
	}
	value, err := c.expand(e.Value)
	if err != nil {
		return err
	}
	if !path.IsAbs(value) {
		return fmt.Errorf("%q: the path must be absolute", value)
	}
	kind := strings.TrimPrefix(e.Key, "Path")
	p.Conditions = append(p.Conditions, service.PathCondition{Kind: kind, Path: path.Clean(value)})
	return nil
}

func octal(field func(*compiler) *uint32) setter {
	return func(c *compiler, e Entry) error {
		m, err := ParseMode(e.Value)
		if err == nil {
			*field(c) = m
		}
		return err
	}
}

func limitBurst(field func(*compiler) *int) setter {
	return func(c *compiler, e Entry) error {
		n, err := ParseUint(e.Value, 31)
		if err == nil {
			*field(c) = int(n)
		}
		return err
	}
}

// PollLimitIntervalSec= and PollLimitBurst= have defaults, and 0 is no limit.
func pollInterval(c *compiler, e Entry) error {
	to := &c.group.Socket.PollLimit.Interval
	err := span(func(*compiler) *time.Duration { return to })(c, e)
	if err == nil && *to == 0 {
		*to = -1
	}
	return err
}

func pollBurst(c *compiler, e Entry) error {
	to := &c.group.Socket.PollLimit.Burst
	err := limitBurst(func(*compiler) *int { return to })(c, e)
	if err == nil && *to == 0 {
		*to = -1
	}
	return err
}

// listens adds an address; the empty value resets all of them.
func listens(kind string) setter {
	return func(c *compiler, e Entry) error {
		s := c.group.Socket
		if e.Value == "" {
			s.Listen = nil
			return nil
		}
		value, err := c.expand(e.Value)
		if err != nil {
			return err
		}
		if kind == service.ListenFIFO {
			if !path.IsAbs(value) {
				return fmt.Errorf("%q: the path of a FIFO must be absolute", value)
			}
		} else if _, err := ParseSocketAddress(value, true); err != nil {
			return err
		}
		s.Listen = append(s.Listen, service.Listen{Kind: kind, Address: value})
		return nil
	}
}

func fileDescriptorName(c *compiler, e Entry) error {
	name, err := c.expand(e.Value)
	if err != nil {
		return err
	}
	if len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' || r == ':' }) {
		return fmt.Errorf("%q cannot be the name of a descriptor", name)
	}
	c.group.Socket.Name = name
	return nil
}

// finishTrigger applies the rules of a timer, path or socket that look at more
// than one directive. The order and the wish that it implies are systemd's.
func (c *compiler) finishTrigger(suffix string) error {
	g := c.group
	stem := strings.TrimSuffix(c.name, suffix)
	switch suffix {
	case ".timer":
		t := g.Timer
		if len(t.OnActive)+len(t.OnBoot)+len(t.OnStartup)+len(t.OnUnitActive)+len(t.OnUnitInactive)+len(t.OnCalendar) == 0 && !t.OnClockChange {
			return fmt.Errorf("no On…= says when it elapses")
		}
		if t.Unit == "" {
			t.Unit = stem + ".service"
		}
	case ".path":
		if len(g.Path.Conditions) == 0 {
			return fmt.Errorf("no Path…= or DirectoryNotEmpty= says what it looks at")
		}
		if g.Path.Unit == "" {
			g.Path.Unit = stem + ".service"
		}
	case ".socket":
		return c.finishSocket(stem)
	}
	c.startsBefore(g.Triggers())
	return nil
}

func (c *compiler) finishSocket(stem string) error {
	s := c.group.Socket
	if len(s.Listen) == 0 {
		return fmt.Errorf("no Listen…= says where it listens")
	}
	if s.Accept {
		if slices.ContainsFunc(s.Listen, func(l service.Listen) bool { return l.Kind != service.ListenStream && l.Kind != service.ListenSeqpkt }) {
			return fmt.Errorf("a datagram socket or FIFO takes no connections, which Accept=yes needs")
		}
		if s.Unit != "" {
			return fmt.Errorf("with Accept=yes each connection has an instance of %s@.service, so Service= cannot be set", stem)
		}
		s.Unit = stem + "@.service"
		if s.MaxConnections == 0 {
			s.MaxConnections = 64
		}
	} else if s.Unit == "" {
		s.Unit = stem + ".service"
	}
	if s.Name == "" {
		s.Name = c.name
		if s.Accept {
			s.Name = "connection"
		}
	}
	if !s.Accept {
		c.startsBefore(s.Unit)
	}
	if x := &c.svc; len(x.StartPre)+len(x.StartPost)+len(x.Stop)+len(x.StopPost) > 0 {
		x.Type, x.RemainAfterExit = service.Oneshot, true
		x.Start = []service.Command{{Path: "listen", Argv: []string{"listen"}, Listen: true}}
		x.TimeoutAbort = x.TimeoutStop
		c.group.Services = []service.Service{*x}
	}
	return nil
}

func (c *compiler) startsBefore(unit string) {
	if d := &c.group.Deps; !slices.Contains(d.Before, unit) && !slices.Contains(d.After, unit) {
		d.Before = append(d.Before, unit)
	}
}

// sockets names the sockets that a service gets; it wants them, and comes after
// them.
func sockets(c *compiler, e Entry) error {
	if e.Value == "" {
		c.svc.Sockets = nil
		return nil
	}
	names, err := c.words(e.Value)
	if err != nil {
		return err
	}
	d := &c.group.Deps
	for _, name := range names {
		if !ValidName(name, Plain|Instance) || path.Ext(name) != ".socket" {
			c.warn(e, "ignored: %q is not the name of a socket unit", name)
			continue
		}
		for _, list := range []*[]string{&c.svc.Sockets, &d.Wants, &d.After} {
			if !slices.Contains(*list, name) {
				*list = append(*list, name)
			}
		}
	}
	return nil
}
