package machine

import (
	"fmt"
	"time"

	"legion.dev/legion/internal/service"
)

// step is one call of Step at work.
type step struct {
	Config
	Instance
	ev      Event
	now     time.Time
	effects []Effect
	began   bool
}

func (s *step) emit(e Effect) { s.effects = append(s.effects, e) }

// enter changes the state and says why. It clears what belongs to the old one.
func (s *step) enter(to service.State, reason string) {
	from := s.State
	s.State, s.Since, s.Reason = to, s.now, reason
	s.Deadline, s.Poll, s.Gone = time.Time{}, time.Time{}, time.Time{}
	if to != service.Running && to != service.Reload {
		s.Watchdog, s.RuntimeEnd = time.Time{}, time.Time{}
		s.Startup.Next, s.Readiness.Next, s.Liveness.Next = time.Time{}, time.Time{}, time.Time{}
	}
	s.emit(Transition{Run: s.Run, From: from, To: to, Reason: reason, Result: s.Result})
}

// fail keeps the first thing that went wrong in this life.
func (s *step) fail(f service.Result) {
	if s.Result == service.Success || s.Result == "" {
		s.Result = f
	}
}

func after(now time.Time, d time.Duration) time.Time {
	if d <= 0 {
		return time.Time{}
	}
	return now.Add(d)
}

// --- processes

func (s *step) spawn(main bool, kind service.State, index int) {
	s.Procs++
	p := &Proc{ID: s.Procs, Kind: kind, Index: index}
	if main {
		s.Main = p
		s.MainUnknown = false
		s.Previous, s.Newest = s.Newest, &service.Run{Number: s.Run, Started: s.now}
	} else {
		s.Control = p
	}
	s.emit(Spawn{Run: s.Run, Proc: p.ID, Main: main, Kind: kind, Index: index})
}

// spawned notes the PID of what was started.
func (s *step) spawned() {
	p := s.Control
	if s.Main != nil && s.Main.ID == s.ev.Proc {
		p = s.Main
		s.Newest.PID, s.Newest.StartTicks, s.Newest.Started = s.ev.PID, s.ev.StartTicks, s.now
	}
	p.PID, p.StartTicks = s.ev.PID, s.ev.StartTicks
}

// mainGone notes the end of the main process.
func (s *step) mainGone() {
	if s.Newest != nil && s.Newest.Exit == nil {
		e := s.ev.Exit
		if s.ev.Kind == SpawnFailed {
			e = service.Exit{At: s.now, Code: 203}
		}
		s.Newest.Exit = &e
	}
	s.Main = nil
}

// procGone notes the end of whichever process the event is about, and returns
// how it went, in a Result and in words.
func (s *step) procGone() (service.Result, string) {
	main := s.Main != nil && s.Main.ID == s.ev.Proc
	p := s.Control
	if main {
		p = s.Main
		s.mainGone()
	} else {
		s.Control = nil
	}
	if s.ev.Kind == SpawnFailed {
		s.SpawnFailed = true
		return service.Resources, s.ev.Message
	}
	f := s.result(s.ev.Exit, main && s.Service.Type != service.Oneshot)
	if !main && s.ev.Exit.Unknown {
		// A daemon does not suffer for what legiond has missed.
		f = service.Success
	}
	if !main && f != service.Success {
		if c := s.commands(p.Kind); p.Index < len(c) && c[p.Index].IgnoreFailure {
			f = service.Success
		}
	}
	if main && s.Service.Type == service.Oneshot && p.Index < len(s.Service.Start) && s.Service.Start[p.Index].IgnoreFailure {
		f = service.Success
	}
	words := s.words(p, main) + " " + ExitWords(s.ev.Exit)
	if !main && f != service.Success && s.ev.Message != "" {
		words += ": " + s.ev.Message
	}
	return f, words
}

func (s *step) words(p *Proc, main bool) string {
	if main {
		return "main process"
	}
	c := s.commands(p.Kind)
	if p.Index < len(c) {
		return fmt.Sprintf("%s command %s", p.Kind, c[p.Index].Path)
	}
	return string(p.Kind) + " command"
}

func (s *step) commands(kind service.State) []service.Command {
	switch kind {
	case service.StartPre:
		return s.Service.StartPre
	case service.Start:
		return s.Service.Start
	case service.StartPost:
		return s.Service.StartPost
	case service.Reload:
		return s.Service.Reload
	case service.Stop:
		return s.Service.Stop
	case service.StopPost:
		return s.Service.StopPost
	}
	return nil
}

// --- the way up

// begin starts a new life.
func (s *step) begin(reason string) {
	if l := s.StartLimit; l.Burst > 0 && l.Interval > 0 {
		recent := s.Starts[:0]
		for _, t := range s.Starts {
			if s.now.Sub(t) < l.Interval {
				recent = append(recent, t)
			}
		}
		s.Starts = recent
		if len(recent) >= l.Burst {
			s.Result = service.StartLimitHit
			s.cleanUp()
			s.enter(service.Failed, fmt.Sprintf("started %d times within %s; try again later, or use reset-failed first", len(recent), l.Interval))
			return
		}
		s.Starts = append(s.Starts, s.now)
	}
	s.began = true
	s.Run++
	s.Result = service.Success
	s.Main, s.Control, s.MainUnknown = nil, nil, false
	s.Stopping, s.Again, s.Stuck, s.SpawnFailed, s.Reloading, s.Missed = false, false, false, false, false, false
	s.ReloadError, s.Text, s.Probe = "", "", ""
	s.WatchdogEvery, s.StopBy = 0, time.Time{}
	s.Startup, s.Readiness, s.Liveness = Health{}, Health{}, Health{}
	if len(s.Service.StartPre) > 0 {
		s.enter(service.StartPre, reason)
		s.Deadline = after(s.now, s.Service.TimeoutStart)
		s.spawn(false, service.StartPre, 0)
		return
	}
	s.enterStart(reason)
}

func (s *step) enterStart(reason string) {
	s.enter(service.Start, reason)
	s.Deadline = after(s.now, s.Service.TimeoutStart)
	switch {
	case len(s.Service.Start) == 0:
		s.enterStartPost()
	case s.Service.Type == service.Forking:
		s.spawn(false, service.Start, 0)
	default:
		s.spawn(true, service.Start, 0)
	}
}

func (s *step) enterStartPost() { s.enterUp("") }

// enterUp is enterStartPost for a reason that people should know.
func (s *step) enterUp(reason string) {
	if len(s.Service.StartPost) > 0 {
		if reason == "" {
			reason = "the main process is up; commands to run after the start"
		}
		s.enter(service.StartPost, reason)
		s.Deadline = after(s.now, s.Service.TimeoutStart)
		s.spawn(false, service.StartPost, 0)
		return
	}
	s.enterRunning(reason)
}

// enterRunning goes to where a started service belongs by what is left of it.
func (s *step) enterRunning(reason string) {
	if n := s.Newest; reason == "" && s.Main == nil && n != nil && n.Number == s.Run && n.Exit != nil && (s.Result != service.Success || s.Service.Type != service.Oneshot) {
		reason = "main process " + ExitWords(*n.Exit) + " meanwhile"
	}
	switch {
	case s.Result != service.Success:
		s.enterSignal(service.StopSigterm, s.Result, reason)
	case s.Main != nil || s.MainUnknown && s.ev.Left:
		if reason == "" {
			reason = "started"
			if s.Main != nil && s.Main.PID != 0 {
				reason = fmt.Sprintf("started, main process %d", s.Main.PID)
			}
		}
		fresh := s.State != service.Reload
		s.enter(service.Running, reason)
		if fresh {
			s.armRunning()
		}
	case s.Service.RemainAfterExit:
		s.enter(service.Exited, "its commands have succeeded, and it remains after exit")
	default:
		if reason == "" {
			reason = "its commands have succeeded"
		}
		s.enterStop(service.Success, reason)
	}
}

func (s *step) armRunning() {
	s.Watchdog = after(s.now, s.watchdogEvery())
	s.RuntimeEnd = after(s.now, s.Service.RuntimeMax)
	s.armProbes()
}

func (s *step) watchdogEvery() time.Duration {
	if s.WatchdogEvery > 0 {
		return s.WatchdogEvery
	}
	return s.Service.Watchdog
}

// --- the way down

func (s *step) enterStop(f service.Result, reason string) {
	s.fail(f)
	s.beginGrace()
	useless := s.Service.StopAlive && s.Main == nil
	if len(s.Service.Stop) > 0 && s.Result != service.WatchdogLate && !useless {
		s.enter(service.Stop, reason)
		s.Deadline = s.stopDeadline(s.Service.TimeoutStop)
		s.spawn(false, service.Stop, 0)
		return
	}
	s.enterSignal(service.StopSigterm, f, reason)
}

// beginGrace: the group's grace period runs from the first thing done to stop.
func (s *step) beginGrace() {
	if s.StopBy.IsZero() {
		s.StopBy = after(s.now, s.Grace)
	}
}

// stopDeadline is d from now, or the end of the group's grace period; like the
// kubelet it leaves at least two seconds to a process after the stop commands
// have used the grace period up.
func (s *step) stopDeadline(d time.Duration) time.Time {
	if s.StopBy.IsZero() {
		return after(s.now, d)
	}
	if least := s.now.Add(2 * time.Second); s.StopBy.Before(least) && s.State == service.StopSigterm && len(s.Service.Stop) > 0 {
		return least
	}
	if !s.StopBy.After(s.now) {
		return s.now
	}
	return s.StopBy
}

// enterSignal asks what is left to end, in the way of the state to; where
// nothing is left it goes on at once.
func (s *step) enterSignal(to service.State, f service.Result, reason string) {
	s.fail(f)
	k := s.Service.Kill
	if !s.waitsFor(to) {
		switch {
		case to == service.StopSigterm || to == service.StopSigkill:
			s.enterStopPost(reason)
		case to == service.FinalSigterm && !k.NoSIGKILL:
			s.enterSignal(service.FinalSigkill, f, reason)
		default:
			s.enterDead(reason)
		}
		return
	}
	s.enter(to, reason)
	timeout := s.Service.TimeoutStop
	if s.Result == service.WatchdogLate && s.Service.TimeoutAbort > 0 {
		timeout = s.Service.TimeoutAbort
	}
	if to == service.StopSigterm || to == service.FinalSigterm {
		s.beginGrace()
		s.Deadline = s.stopDeadline(timeout)
	} else {
		if timeout <= 0 {
			timeout = 90 * time.Second
		}
		s.Deadline = s.now.Add(timeout)
	}
	s.sendSignal()
}

// waitsFor says whether anything is left that the state to has to end.
func (s *step) waitsFor(to service.State) bool {
	mode := s.Service.Kill.Mode
	if mode == service.KillNone {
		return false
	}
	if s.Main != nil || s.Control != nil {
		return true
	}
	return s.ev.Left && s.wholeGroup(to)
}

// wholeGroup says whether the signal of the state goes to every process of the
// cgroup (systemd.kill(5), KillMode=).
func (s *step) wholeGroup(in service.State) bool {
	switch s.Service.Kill.Mode {
	case "", service.KillControlGroup:
		return true
	case service.KillMixed:
		return in == service.StopSigkill || in == service.FinalSigkill
	}
	return false
}

func (s *step) sendSignal() {
	k := s.Service.Kill
	e := Signal{Number: 15, All: s.wholeGroup(s.State)}
	switch s.State {
	case service.StopSigkill, service.FinalSigkill:
		e.Number = 9
		if k.FinalSignal != 0 {
			e.Number = k.FinalSignal
		}
	default:
		e.Cont, e.Hup = true, k.SendSIGHUP
		switch {
		case s.Result == service.WatchdogLate && s.State == service.StopSigterm:
			e.Number, e.Cont = 6, false
			if k.WatchdogSig != 0 {
				e.Number = k.WatchdogSig
			}
		case s.Again && k.RestartSignal != 0:
			e.Number = k.RestartSignal
		case k.Signal != 0:
			e.Number = k.Signal
		}
	}
	for _, p := range [...]*Proc{s.Main, s.Control} {
		if p != nil && p.PID != 0 {
			e.PIDs = append(e.PIDs, p.PID)
		}
	}
	if len(e.PIDs) > 0 || e.All {
		s.emit(e)
	}
}

func (s *step) enterStopPost(reason string) {
	if len(s.Service.StopPost) > 0 {
		s.enter(service.StopPost, reason)
		s.Deadline = after(s.now, s.Service.TimeoutStop)
		s.spawn(false, service.StopPost, 0)
		return
	}
	s.enterSignal(service.FinalSigterm, service.Success, reason)
}

// enterDead ends the life, and decides what follows it.
func (s *step) enterDead(reason string) {
	s.StopBy = time.Time{}
	s.Main, s.Control, s.MainUnknown = nil, nil, false
	again := s.Again
	skipped := s.Result == service.SkipCondition
	restart := !again && !skipped && s.shallRestart()
	s.emit(CleanUp{Run: s.Run, Restarting: again || restart})
	switch {
	case again:
		s.Again, s.Restarts, s.Backoff = false, 0, 0
		s.begin("restarted by request")
	case restart:
		s.enterAutoRestart(reason)
	case s.Result == service.Success || skipped:
		s.enter(service.Dead, reason)
	default:
		s.enter(service.Failed, reason)
	}
}

func (s *step) enterAutoRestart(reason string) {
	delay, words := s.restartDelay()
	if s.began || s.SpawnFailed && s.Service.Restart.Backoff == nil {
		// A life without a process, or one that cannot begin, must not spin.
		delay = max(delay, 100*time.Millisecond)
	}
	if words == "" {
		words = fmt.Sprintf("%s; restarts in %s", reason, delay)
		if delay <= 0 {
			words = reason + "; restarts at once"
		}
	} else {
		words += ": " + reason
	}
	s.enter(service.AutoRestart, words)
	if delay <= 0 {
		s.restartDue()
		return
	}
	s.Deadline = s.now.Add(delay)
}

func (s *step) restartDue() {
	if s.now.Before(s.Deadline) {
		return
	}
	if s.endsAll(s.Service) { // the host sees to it (CallsAll)
		to := service.Failed
		if s.Result == service.Success {
			to = service.Dead
		}
		s.enter(to, "all of its group are to start again")
		return
	}
	s.Restarts++
	s.begin(fmt.Sprintf("automatic restart %d", s.Restarts))
}
