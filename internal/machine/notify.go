package machine

import (
	"fmt"
	"time"

	"legion.dev/legion/internal/service"
)

// Accepts says whether the service heeds messages of a process.
func Accepts(c Config, in Instance, pid int) bool {
	s := step{Config: c, Instance: in, ev: Event{PID: pid}}
	return s.accepted()
}

// accepted applies NotifyAccess=: whose messages count. The caller has already
// found the sender to be in the service's cgroup, or one of its processes.
func (s *step) accepted() bool {
	access := s.Service.NotifyAccess
	if access == "" && (s.Service.Type == service.Notify || s.Service.Type == service.NotifyReload || s.Service.Watchdog > 0) {
		access = service.NotifyMain
	}
	if s.ev.PID == 0 {
		return false
	}
	main := s.Main != nil && s.Main.PID == s.ev.PID
	switch access {
	case service.NotifyAll:
		return true
	case service.NotifyExec:
		return main || s.Control != nil && s.Control.PID == s.ev.PID
	case service.NotifyMain:
		return main
	}
	return false
}

// note takes in what counts in every state, and tells whether the message
// counts at all.
func (s *step) note() { s.noted() }

func (s *step) noted() bool {
	if !s.accepted() {
		return false
	}
	n := s.ev.Note
	if n.HasText {
		s.Text = n.Text
	}
	if n.WatchdogEvery > 0 {
		s.WatchdogEvery = n.WatchdogEvery
	}
	if n.MainPID > 0 && (s.Main == nil || s.Main.PID != n.MainPID) {
		s.emit(FindMain{Run: s.Run, PID: n.MainPID})
	}
	if n.ExtendTimeout > 0 {
		by := s.now.Add(n.ExtendTimeout)
		if !s.Deadline.IsZero() && s.Deadline.Before(by) {
			s.Deadline = by
		}
		if !s.RuntimeEnd.IsZero() && s.RuntimeEnd.Before(by) {
			s.RuntimeEnd = by
		}
	}
	if s.State == service.Running || s.State == service.Reload {
		if n.Watchdog || n.WatchdogEvery > 0 {
			s.Watchdog = after(s.now, s.watchdogEvery())
		}
	}
	return true
}

func (s *step) startNotified() {
	if s.noted() && s.ev.Note.Ready && (s.Service.Type == service.Notify || s.Service.Type == service.NotifyReload) {
		s.enterStartPost()
	}
}

func (s *step) runningNotified() {
	if !s.noted() {
		return
	}
	switch n := s.ev.Note; {
	case n.WatchdogTrigger:
		s.watchdogLate("the service itself asked for the watchdog's action")
	case n.Stopping:
		s.beginGrace()
		s.enter(service.StopSigterm, "the service says that it stops")
		s.Deadline = s.stopDeadline(s.Service.TimeoutStop)
	case n.Reloading && !n.Ready:
		s.Reloading = true
		s.enter(service.Reload, "the service says that it reloads")
		s.Deadline = after(s.now, s.Service.TimeoutStart)
	}
}

func (s *step) reloadNotified() {
	if !s.noted() {
		return
	}
	n := s.ev.Note
	switch {
	case n.WatchdogTrigger:
		s.watchdogLate("the service itself asked for the watchdog's action")
		return
	case n.Reloading:
		s.Reloading = true
	}
	if n.Ready && s.Reloading && s.Control == nil {
		s.Reloading = false
		s.backToRunning("reloaded")
	}
}

// --- probes; the meaning of their numbers is core/v1 Probe's

func (s *step) health(k ProbeKind) (*service.Probe, *Health) {
	switch k {
	case StartupProbe:
		return s.Service.Startup, &s.Startup
	case ReadinessProbe:
		return s.Service.Readiness, &s.Readiness
	}
	return s.Service.Liveness, &s.Liveness
}

var probeKinds = [...]ProbeKind{StartupProbe, ReadinessProbe, LivenessProbe}

func (s *step) armProbes() {
	for _, k := range probeKinds {
		p, h := s.health(k)
		// The startup probe comes before the others, and passes once.
		if p == nil || (k == StartupProbe) == (s.Service.Startup == nil || s.Startup.Passed) {
			continue
		}
		began := s.Since
		if s.Newest != nil {
			began = s.Newest.Started
		}
		h.Next = began.Add(p.InitialDelay)
		if h.Next.Before(s.now) {
			h.Next = s.now
		}
	}
}

// eager is when a readiness probe is asked again after its first failure; the
// time doubles with each one, up to the probe's period.
const eager = 50 * time.Millisecond

// Timing gives a probe's period and timeout with their defaults.
func Timing(p *service.Probe) (period, timeout time.Duration) {
	period, timeout = p.Period, p.Timeout
	if period <= 0 {
		period = 10 * time.Second
	}
	if timeout <= 0 {
		timeout = time.Second
	}
	return period, timeout
}

// probesDue asks each probe whose time has come. Next is set beyond the
// answer, so that one that is lost is asked again.
func (s *step) probesDue() {
	for _, k := range probeKinds {
		p, h := s.health(k)
		if p == nil || h.Next.IsZero() || s.now.Before(h.Next) {
			continue
		}
		period, timeout := Timing(p)
		h.Next = s.now.Add(period + timeout)
		s.emit(RunProbe{Run: s.Run, Kind: k})
	}
}

func (s *step) probed() {
	p, h := s.health(s.ev.Probe)
	if p == nil || h.Next.IsZero() {
		return
	}
	period, _ := Timing(p)
	if at := s.now.Add(period); at.Before(h.Next) {
		h.Next = at
	}
	if s.ev.OK {
		h.Successes, h.Failures = h.Successes+1, 0
		if h.Successes < max(p.SuccessThreshold, 1) || h.Passed {
			return
		}
		h.Passed, s.Probe = true, ""
		if s.ev.Probe == StartupProbe {
			h.Next = time.Time{}
			s.armProbes()
		}
		return
	}
	h.Successes, h.Failures = 0, h.Failures+1
	if s.ev.Probe == ReadinessProbe && !h.Passed {
		// A service that has just begun to listen should not wait out a whole
		// period for being asked again. Other probes count their failures.
		if at := s.now.Add(eager << min(h.Failures-1, 16)); at.Before(h.Next) {
			h.Next = at
		}
	}
	limit := p.FailureThreshold
	if limit <= 0 {
		limit = 3
	}
	s.Probe = fmt.Sprintf("%s probe failed: %s", s.ev.Probe, s.ev.Message)
	if h.Failures < limit {
		return
	}
	h.Passed = false
	if s.ev.Probe != ReadinessProbe {
		s.StopBy = after(s.now, p.Grace)
		s.enterStop(service.Unhealthy, fmt.Sprintf("%s probe failed %d times: %s", s.ev.Probe, h.Failures, s.ev.Message))
	}
}

// IsReady says whether the service counts as ready: started as its Type= says,
// and passed by its probes.
func (in *Instance) IsReady(s *service.Service) bool {
	switch in.State {
	case service.Running, service.Reload, service.Exited:
		return in.IsStarted(s) && (s.Readiness == nil || in.Readiness.Passed)
	}
	return false
}

// IsStarted says whether the startup probe (if any) has passed.
func (in *Instance) IsStarted(s *service.Service) bool {
	switch in.State {
	case service.Running, service.Reload, service.Exited:
		return s.Startup == nil || in.Startup.Passed
	}
	return false
}

// Explain adds to the end of a run what it has said of it; false if the run is
// not known any more.
func (in *Instance) Explain(run uint64, message string) bool {
	for _, r := range [...]**service.Run{&in.Newest, &in.Previous} {
		if *r == nil || (*r).Number != run || (*r).Exit == nil {
			continue
		}
		next, exit := **r, *(*r).Exit
		exit.Message = message
		next.Exit = &exit
		*r = &next
		return true
	}
	return false
}

// Status is what the wire says of the instance; cgroup, log directory and
// losses are the host's to add.
func (in *Instance) Status(s *service.Service) service.Status {
	st := service.Status{
		Name: s.Name, State: in.State, Since: in.Since, Result: in.Result, Reason: in.Reason,
		Main: clone(in.Newest), Previous: clone(in.Previous), Restarts: in.Restarts,
		Ready: in.IsReady(s), Started: in.IsStarted(s), Probe: in.Probe, Text: in.Text,
	}
	if in.Control != nil {
		st.ControlPID = in.Control.PID
	}
	if in.State == service.AutoRestart && !in.Deadline.IsZero() {
		t := in.Deadline
		st.NextRestart = &t
	}
	return st
}
