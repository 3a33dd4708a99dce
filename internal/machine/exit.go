package machine

import (
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// clean are the signals by which a daemon may end without having failed
// (systemd.service(5), SuccessExitStatus=).
var clean = []int{int(unix.SIGHUP), int(unix.SIGINT), int(unix.SIGTERM), int(unix.SIGPIPE)}

// result judges an exit. Only a daemon may end by one of the clean signals; a
// command may not.
func (s *step) result(e service.Exit, daemon bool) service.Result {
	ok := s.Service.SuccessStatus
	switch {
	case e.Unknown && s.Stopping:
		return service.Success
	case e.Unknown:
		return service.ExitCode
	case e.Signal != 0 && (daemon && slices.Contains(clean, e.Signal) || daemon && slices.Contains(ok.Signals, e.Signal)):
		return service.Success
	case e.OOM:
		return service.OOMKill
	case e.Core:
		return service.CoreDump
	case e.Signal != 0:
		return service.SignalResult
	case e.Code == 0 || slices.Contains(ok.Codes, e.Code):
		return service.Success
	}
	return service.ExitCode
}

// ExitWords says how a process ended: "exited with status 1", "was killed by
// SIGKILL".
func ExitWords(e service.Exit) string {
	switch {
	case e.Unknown:
		return "ended while legiond was away; its exit status is not known"
	case e.OOM:
		return "was killed by the kernel: out of memory"
	case e.Signal != 0 && e.Core:
		return fmt.Sprintf("was killed by %s and dumped core", SignalName(e.Signal))
	case e.Signal != 0:
		return "was killed by " + SignalName(e.Signal)
	}
	return fmt.Sprintf("exited with status %d", e.Code)
}

// SignalName is "SIGTERM" for 15, and "signal N" for what has no name.
func SignalName(n int) string {
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", n)
}

// shallRestart applies Restart= and its exceptions to how this life went.
func (s *step) shallRestart() bool {
	r := s.Service.Restart
	if s.Stopping || s.Stuck {
		return false
	}
	if s.Newest != nil && s.Newest.Number == s.Run && s.Newest.Exit != nil && !s.Newest.Exit.Unknown {
		if r.Prevent.Has(*s.Newest.Exit) {
			return false
		}
		if r.Force.Has(*s.Newest.Exit) || r.All.Has(*s.Newest.Exit) {
			return true
		}
	}
	switch r.Mode {
	case service.RestartAlways:
		return true
	case service.RestartOnSuccess:
		return s.Result == service.Success
	case service.RestartOnFailure:
		return s.Result != service.Success
	case service.RestartOnAbnormal:
		return s.Result != service.Success && s.Result != service.ExitCode
	case service.RestartOnWatchdog:
		return s.Result == service.WatchdogLate
	case service.RestartOnAbort:
		return s.Result == service.SignalResult || s.Result == service.CoreDump
	}
	return false
}

// CallsAll says whether the service has ended in a way that Restart.All names,
// and rests until all of its group start again.
func (in *Instance) CallsAll(s *service.Service) bool {
	rests := in.State == service.Dead || in.State == service.Failed
	return rests && !in.Stopping && !in.Stuck && in.endsAll(s)
}

func (in *Instance) endsAll(s *service.Service) bool {
	n := in.Newest
	return n != nil && n.Number == in.Run && n.Exit != nil && s.Restart.All.Has(*n.Exit)
}

// restartDelay is how long the next restart waits; words is empty where it is
// no back-off.
func (s *step) restartDelay() (delay time.Duration, words string) {
	r := s.Service.Restart
	if b := r.Backoff; b != nil {
		if n := s.Newest; n != nil && n.Number == s.Run && b.ResetAfter > 0 && s.now.Sub(n.Started) >= b.ResetAfter {
			s.Backoff = 0
		}
		defer func() { s.Backoff++ }()
		if s.Backoff == 0 {
			return 0, ""
		}
		d := b.Initial
		for range s.Backoff - 1 {
			if d *= 2; d >= b.Max {
				break
			}
		}
		d = min(d, b.Max)
		return d, fmt.Sprintf("back-off %s restarting failed container", shortDuration(d))
	}
	if r.Steps <= 0 || s.Restarts == 0 || r.MaxDelay <= r.Delay {
		return r.Delay, ""
	}
	if s.Restarts >= r.Steps {
		return r.MaxDelay, ""
	}
	// As systemd: the delay grows geometrically from RestartSec= to
	// RestartMaxDelaySec= in RestartSteps= steps.
	from := max(float64(r.Delay), 1)
	return time.Duration(from * math.Pow(float64(r.MaxDelay)/from, float64(s.Restarts)/float64(r.Steps))), ""
}

// shortDuration writes 5m0s as Kubernetes does, and 20s as 20s.
func shortDuration(d time.Duration) string { return d.Round(time.Millisecond).String() }
