package machine

import (
	"fmt"
	"time"

	"legion.dev/legion/internal/service"
)

// The functions of the table's cells, in the order of a life.

func (s *step) by(what string) string {
	if s.ev.By == "" {
		return what + " by request"
	}
	return what + ": " + s.ev.By
}

func (s *step) askedStart() {
	if s.ev.KeepCount {
		s.Restarts++
	} else {
		s.Restarts, s.Backoff = 0, 0
	}
	if s.ev.Kind == RestartAsked {
		s.begin(s.by("restart"))
		return
	}
	s.begin(s.by("start"))
}

// forgetStop: the service is wanted again before anything was done to stop it.
func (s *step) forgetStop() { s.Stopping = false }

// noteStop: a stop of what does not run only tells who wanted it.
func (s *step) noteStop() { s.Stopping = true }

func (s *step) refuseReload() {
	s.ReloadError = fmt.Sprintf("it is %s: only a running service can reload", s.State)
}

// reset forgets how often and how badly the service started.
func (s *step) reset() { s.Starts, s.Restarts, s.Backoff = nil, 0, 0 }

func (s *step) resetFailed() {
	s.reset()
	s.Result = service.Success
	s.enter(service.Dead, s.by("failure forgotten"))
}

func (s *step) cleanUp() { s.emit(CleanUp{Run: s.Run}) }

// asked notes a stop or restart under way.
func (s *step) asked() string {
	s.Again = s.ev.Kind == RestartAsked
	s.Stopping = true
	if s.ev.Grace != nil {
		s.StopBy = s.now.Add(max(*s.ev.Grace, 0))
	}
	if s.Again {
		return s.by("restart")
	}
	return s.by("stop")
}

func (s *step) askedStop() {
	reason := s.asked()
	if s.ev.Grace != nil && *s.ev.Grace <= 0 {
		s.enterSignal(service.StopSigkill, service.Success, reason)
		return
	}
	s.enterStop(service.Success, reason)
}

// askedSignal stops what has not started yet, or reloads: without ExecStop=.
func (s *step) askedSignal() {
	reason := s.asked()
	to := service.StopSigterm
	if s.ev.Grace != nil && *s.ev.Grace <= 0 {
		to = service.StopSigkill
	}
	s.enterSignal(to, service.Success, reason)
}

// againLater: start once the stop under way is done.
func (s *step) againLater() { s.Again = true }

// stopSooner takes back a start that waits for the stop, and shortens it.
func (s *step) stopSooner() {
	s.Again, s.Stopping = false, true
	if s.ev.Grace == nil {
		return
	}
	by := s.now.Add(max(*s.ev.Grace, 0))
	if s.StopBy.IsZero() || by.Before(s.StopBy) {
		s.StopBy = by
	}
	if s.Deadline.IsZero() || by.Before(s.Deadline) {
		s.Deadline = by
	}
}

func (s *step) signalSooner() {
	s.stopSooner()
	if s.ev.Grace != nil && *s.ev.Grace <= 0 && s.State == service.StopSigterm {
		s.enterSignal(service.StopSigkill, service.Success, s.by("stop without grace"))
	}
}

// --- starting

// next runs the following command of the state, and tells whether there is one.
func (s *step) next(main bool, timeout time.Duration, index int) bool {
	if index >= len(s.commands(s.State)) {
		return false
	}
	s.Deadline = after(s.now, timeout)
	s.spawn(main, s.State, index)
	return true
}

func (s *step) preExited() {
	index := s.Control.Index
	f, words := s.procGone()
	c := s.commands(service.StartPre)
	switch {
	case f == service.ExitCode && index < len(c) && c[index].Condition && !s.ev.Exit.Unknown && s.ev.Exit.Code < 255:
		s.enterSignal(service.StopSigterm, service.SkipCondition, "the start was skipped: "+words)
	case f != service.Success:
		s.enterSignal(service.StopSigterm, f, words)
	case !s.next(false, s.Service.TimeoutStart, index+1):
		s.enterStart("the commands before the start have succeeded")
	}
}

// startFailed: a process of the start could not be made.
func (s *step) startFailed() {
	f, words := s.procGone()
	s.enterSignal(service.StopSigterm, f, words)
}

func (s *step) startLate() {
	if s.pollDue() {
		return
	}
	if s.Deadline.IsZero() || s.now.Before(s.Deadline) {
		return
	}
	if s.State == service.Start && s.Missed && s.Main != nil && s.Main.PID != 0 {
		s.enterUp("it lives, and may have said READY=1 while legiond was away")
		return
	}
	words := fmt.Sprintf("not started within %s", s.Service.TimeoutStart)
	if s.State == service.Start && (s.Service.Type == service.Notify || s.Service.Type == service.NotifyReload) {
		words += ": no READY=1 came"
	}
	if s.State == service.Start && s.Service.Type == service.DBus {
		words += ": it does not own the name " + s.Service.BusName + " on the system bus"
	}
	if s.State == service.Start && s.Service.Type == service.Forking && s.Control == nil {
		words += ": " + s.Reason // why there is no main process
	}
	s.enterSignal(service.StopSigterm, service.Timeout, words)
}

func (s *step) startSpawned() {
	s.spawned()
	switch s.Service.Type {
	case service.Oneshot, service.Notify, service.NotifyReload, service.DBus, service.Forking:
		return
	}
	s.enterStartPost()
}

// startNamed: a Type=dbus service owns its name.
func (s *step) startNamed() {
	if s.Service.Type == service.DBus && s.ev.OK {
		s.enterStartPost()
	}
}

// runningNamed: one that has lost its name can do its work no more, and is
// stopped, as systemd does.
func (s *step) runningNamed() {
	if s.Service.Type == service.DBus && !s.ev.OK {
		s.enterStop(service.Success, fmt.Sprintf("it owns the name %s on the system bus no more", s.Service.BusName))
	}
}

func (s *step) startMainExited() {
	index := s.Main.Index
	f, words := s.procGone()
	switch {
	case f != service.Success:
		s.enterSignal(service.StopSigterm, f, words)
	case s.Service.Type == service.Oneshot:
		if !s.next(true, s.Service.TimeoutStart, index+1) {
			s.enterStartPost()
		}
	case s.Service.Type == service.Notify || s.Service.Type == service.NotifyReload:
		s.enterSignal(service.StopSigterm, service.Protocol, words+" before it sent READY=1")
	case s.Service.Type == service.DBus:
		s.enterSignal(service.StopSigterm, service.Protocol, words+" before it owned the name "+s.Service.BusName)
	default:
		s.enterRunning(words)
	}
}

// startForked: Type=forking's start command has ended; the daemon is behind it.
func (s *step) startForked() {
	f, words := s.procGone()
	if f != service.Success {
		s.enterSignal(service.StopSigterm, f, words)
		return
	}
	if s.Main != nil { // it has told by MAINPID=
		s.enterStartPost()
		return
	}
	s.Poll = s.now.Add(10 * time.Millisecond)
	s.emit(FindMain{Run: s.Run})
}

// pollDue looks for the main process again where it is time to.
func (s *step) pollDue() bool {
	if s.Poll.IsZero() || s.now.Before(s.Poll) {
		return false
	}
	s.Poll = s.now.Add(min(250*time.Millisecond, max(10*time.Millisecond, s.now.Sub(s.Since)/4)))
	s.emit(FindMain{Run: s.Run})
	return s.Deadline.IsZero() || s.now.Before(s.Deadline)
}

// mainFound takes a process that is not our child, or that announced itself by
// MAINPID=, as the main one.
func (s *step) mainFound() {
	if s.Main != nil && s.Main.PID == s.ev.PID {
		return
	}
	if s.Newest == nil || s.Newest.Number != s.Run {
		s.Previous, s.Newest = s.Newest, &service.Run{Number: s.Run, Started: s.now}
	}
	s.Procs++
	s.Newest.PID, s.Newest.StartTicks = s.ev.PID, s.ev.StartTicks
	s.Main = &Proc{ID: s.Procs, Kind: service.Start, PID: s.ev.PID, StartTicks: s.ev.StartTicks}
	s.MainUnknown = false
}

func (s *step) startMainFound() {
	s.mainFound()
	if s.Service.Type == service.Forking && s.Control == nil {
		s.enterStartPost()
	}
}

func (s *step) startMainMissing() {
	if s.Service.Type != service.Forking || s.Control != nil || s.Main != nil {
		return
	}
	switch {
	case s.Service.PIDFile == "":
		s.MainUnknown = true
		s.enterStartPost()
	case !s.ev.Left && !s.ev.Gone:
		s.enterSignal(service.StopSigterm, service.Protocol, "the daemon is gone: "+s.ev.Message)
	case !s.ev.Gone: // the daemon may write it yet; Poll and Deadline are set
		s.Gone, s.Reason = time.Time{}, s.ev.Message
	case s.Gone.IsZero():
		s.Gone = s.now
	case s.now.Sub(s.Gone) >= gonePatience && !s.ev.Untold:
		s.fail(s.result(s.ev.Exit, true))
		s.enterSignal(service.StopSigterm, service.Protocol, fmt.Sprintf("the daemon that %s names %s", s.Service.PIDFile, ExitWords(s.ev.Exit)))
	}
}

// gonePatience is how long a PID file may name a process that has ended: some
// daemons write down a process of their start first.
const gonePatience = time.Second

func (s *step) startEmptied() {
	if s.Service.Type == service.Forking && s.Control == nil && s.Main == nil && s.Service.PIDFile != "" {
		s.emit(FindMain{Run: s.Run}) // for how it has ended
	}
}

// sideMainExited: the main process has ended beside a command that runs.
func (s *step) sideMainExited() {
	f, words := s.procGone()
	s.fail(f)
	if s.Control == nil {
		s.enterStop(f, words)
	}
}

func (s *step) postExited() {
	index := s.Control.Index
	f, words := s.procGone()
	switch {
	case f != service.Success:
		s.enterSignal(service.StopSigterm, f, words)
	case !s.next(false, s.Service.TimeoutStart, index+1):
		s.enterRunning("")
	}
}

// --- running

func (s *step) runningMainExited() {
	f, words := s.procGone()
	s.fail(f)
	s.enterRunning(words)
}

func (s *step) runningEmptied() {
	if s.Main == nil {
		s.ev.Left = false
		s.enterRunning("its last process has ended")
	}
}

// runningAlarm: each time due is looked at; the first that ends the run wins.
func (s *step) runningAlarm() {
	switch {
	case !s.RuntimeEnd.IsZero() && !s.now.Before(s.RuntimeEnd):
		s.enterStop(service.Timeout, fmt.Sprintf("it ran for %s, which is the longest it may", s.Service.RuntimeMax))
	case !s.Watchdog.IsZero() && !s.now.Before(s.Watchdog):
		s.watchdogLate(fmt.Sprintf("no WATCHDOG=1 for %s", s.watchdogEvery()))
	default:
		s.probesDue()
	}
}

func (s *step) watchdogLate(words string) {
	s.enterSignal(service.StopSigterm, service.WatchdogLate, words)
}

// --- reloading

func (s *step) askedReload() {
	s.ReloadError = ""
	switch {
	case len(s.Service.Reload) > 0:
		s.enter(service.Reload, s.by("reload"))
		s.Deadline = after(s.now, s.Service.TimeoutStart)
		s.spawn(false, service.Reload, 0)
	case s.Service.Type == service.NotifyReload && s.Main != nil && s.Main.PID != 0:
		n := 1
		if s.Service.Kill.ReloadSignal != 0 {
			n = s.Service.Kill.ReloadSignal
		}
		s.Reloading = false
		s.enter(service.Reload, s.by("reload"))
		s.Deadline = after(s.now, s.Service.TimeoutStart)
		s.emit(Signal{Number: n, PIDs: []int{s.Main.PID}})
	default:
		s.ReloadError = "it has no ExecReload= and is not Type=notify-reload"
	}
}

func (s *step) reloadExited() {
	index := s.Control.Index
	f, words := s.procGone()
	if f != service.Success || s.ReloadError != "" {
		if s.ReloadError == "" {
			s.ReloadError = words
		}
		s.backToRunning("reload failed: " + s.ReloadError)
		return
	}
	if !s.next(false, s.Service.TimeoutStart, index+1) {
		s.backToRunning("reloaded")
	}
}

// backToRunning leaves Reload; where the main process has ended meanwhile its
// end is the reason.
func (s *step) backToRunning(reason string) {
	if s.Main == nil && s.Newest != nil && s.Newest.Exit != nil && s.Newest.Number == s.Run && s.Service.Type != service.Oneshot {
		reason = "main process " + ExitWords(*s.Newest.Exit) + " during the reload"
	}
	s.enterRunning(reason)
}

func (s *step) reloadAlarm() {
	if s.Deadline.IsZero() || s.now.Before(s.Deadline) {
		s.runningAlarm()
		return
	}
	s.ReloadError = fmt.Sprintf("not done within %s", s.Service.TimeoutStart)
	if s.Control != nil {
		// The command is ended and its exit brings the service back.
		s.Deadline = time.Time{}
		if s.Control.PID != 0 {
			s.emit(Signal{Number: 9, PIDs: pids(s.Control)})
		}
		return
	}
	s.backToRunning("reload failed: " + s.ReloadError)
}

// reloadSpawned: a command that came too late is ended at once.
func (s *step) reloadSpawned() {
	s.spawned()
	if s.ReloadError != "" {
		s.emit(Signal{Number: 9, PIDs: pids(s.Control)})
	}
}

func pids(p *Proc) []int {
	if p == nil || p.PID == 0 {
		return nil
	}
	return []int{p.PID}
}

// --- stopping

func (s *step) stopMainExited() {
	f, words := s.procGone()
	s.fail(f)
	if s.Control == nil {
		s.enterSignal(service.StopSigterm, service.Success, words)
	}
}

func (s *step) stopExited() {
	index := s.Control.Index
	f, words := s.procGone()
	if f == service.Success {
		if index+1 < len(s.Service.Stop) {
			s.spawn(false, service.Stop, index+1)
			return
		}
		words = s.Reason
	}
	s.enterSignal(service.StopSigterm, f, words)
}

func (s *step) stopLate() {
	if s.Deadline.IsZero() || s.now.Before(s.Deadline) {
		return
	}
	s.enterSignal(service.StopSigterm, service.Timeout, "its stop command has not ended in time")
}

// signalSpawned: a process that was being started when the stop came gets the
// signal that it has missed.
func (s *step) signalSpawned() {
	s.spawned()
	s.sendSignal()
}

// signalExited goes on once all that the state waits for has ended.
func (s *step) signalExited() {
	if s.ev.Kind == Emptied {
		s.ev.Left = false
	} else {
		f, words := s.procGone()
		if s.Result == service.Success && f != service.Success {
			// Of more weight than why it was to stop, also once the others have ended.
			s.Reason = words
		}
		s.fail(f)
	}
	if s.waitsFor(s.State) {
		return
	}
	switch s.State {
	case service.StopSigterm, service.StopSigkill:
		s.enterStopPost(s.Reason)
	default:
		s.enterDead(s.Reason)
	}
}

func (s *step) termLate() {
	if s.Deadline.IsZero() || s.now.Before(s.Deadline) {
		return
	}
	words := fmt.Sprintf("it did not end within %s of %s", shortDuration(s.now.Sub(s.Since)), s.stopSignalName())
	switch {
	case s.State == service.StopSigterm && !s.Service.Kill.NoSIGKILL:
		s.enterSignal(service.StopSigkill, service.Timeout, words)
	case s.State == service.StopSigterm:
		s.enterStopPost(words)
	case !s.Service.Kill.NoSIGKILL:
		s.enterSignal(service.FinalSigkill, service.Timeout, words)
	default:
		s.stuck(words)
	}
}

func (s *step) stopSignalName() string {
	switch {
	case s.Result == service.WatchdogLate:
		return "the watchdog's signal"
	case s.Service.Kill.Signal != 0:
		return SignalName(s.Service.Kill.Signal)
	}
	return SignalName(15)
}

func (s *step) killLate() {
	if s.Deadline.IsZero() || s.now.Before(s.Deadline) {
		return
	}
	words := "a process has outlived SIGKILL"
	if s.State == service.StopSigkill {
		s.Stuck = true
		s.fail(service.Timeout)
		s.enterStopPost(words)
		return
	}
	s.stuck(words)
}

// stuck gives up on processes that do not end. Nothing is started beside them
// by itself.
func (s *step) stuck(words string) {
	s.Stuck, s.Again = true, false
	s.fail(service.Timeout)
	s.enterDead(words)
}

func (s *step) stopPostExited() {
	index := s.Control.Index
	f, words := s.procGone()
	reason := s.Reason
	switch {
	case f != service.Success:
		reason = words
	case s.next(false, s.Service.TimeoutStop, index+1):
		return
	}
	s.enterSignal(service.FinalSigterm, f, reason)
}

func (s *step) stopPostLate() {
	if s.Deadline.IsZero() || s.now.Before(s.Deadline) {
		return
	}
	s.enterSignal(service.FinalSigterm, service.Timeout, "its stop-post command has not ended in time")
}

// giveUp ends the wait for an automatic restart.
func (s *step) giveUp() {
	s.Stopping = true
	s.cleanUp()
	if s.Result == service.Success {
		s.enter(service.Dead, s.by("stop"))
		return
	}
	s.enter(service.Failed, s.by("stop")+" while it waited for a restart")
}
