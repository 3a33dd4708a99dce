package machine

import (
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

// What a machine does about that which legiond has missed while it was away.

var missed = service.Exit{Unknown: true}

func (p *script) controlMissed() *script {
	return p.give("control ends unseen", Event{Kind: MainExited, Run: p.in.Run, Proc: p.in.Control.ID, Exit: missed})
}

// TestMissedCommand: no daemon is ended because the exit status of a command
// beside it is not known.
func TestMissedCommand(t *testing.T) {
	play(t, service.Service{StartPre: []service.Command{{Path: "/pre"}}, StartPost: []service.Command{{Path: "/post"}}}).
		start().up().controlMissed().up().up().controlMissed().check(`
		start: start-pre, run start-pre[0]
		up 101: (start-pre)
		control ends unseen: start, run start[0]
		up 102: start-post, run start-post[0]
		up 103: (start-post)
		control ends unseen: running`)
}

// TestMissedFork: nor is the daemon of Type=forking; one that is not there is.
func TestMissedFork(t *testing.T) {
	s := service.Service{Type: service.Forking, PIDFile: "/pid"}
	p := play(t, s).start().up()
	p.left = true
	p.controlMissed().give("found", Event{Kind: MainFound, PID: 200}).check(`
		start: start, run start[0]
		up 101: (start)
		control ends unseen: look for main
		found: running`)
	play(t, s).start().up().controlMissed().give("missing", Event{Kind: MainMissing, Message: "no file"}).check(`
		start: start, run start[0]
		up 101: (start)
		control ends unseen: look for main
		missing: failed`)
}

// TestMissedReady: a READY=1 that came while legiond was away is lost, so a
// process that lives is taken for ready in the end.
func TestMissedReady(t *testing.T) {
	s := service.Service{Type: service.Notify, TimeoutStart: time.Minute}
	p := play(t, s).start().up()
	p.in.Missed = true
	p.wait().check(`
		start: start, run start[0]
		up 101: (start)
		after 1m0s: running`)
	if p.in.Main == nil || p.in.Run != 1 {
		t.Errorf("it is %+v", p.in)
	}
	// The next life is heard from its beginning.
	p.main(killed).start().up().wait()
	if p.in.State != service.StopSigterm || p.in.Result != service.Timeout {
		t.Errorf("after its second start it is %s, %s", p.in.State, p.in.Result)
	}
}

// TestGoneDaemon: where the PID file names a process that has ended it may yet
// name another one, for a second.
func TestGoneDaemon(t *testing.T) {
	s := service.Service{Type: service.Forking, PIDFile: "/pid", TimeoutStart: time.Minute, Kill: service.Kill{Mode: service.KillControlGroup}}
	gone := Event{Kind: MainMissing, Gone: true, Exit: service.Exit{Code: 3}}
	started := func() *script {
		p := play(t, s).start().up().control(0)
		p.left, p.out = true, nil
		return p
	}
	p := started().give("gone", gone).pass(900*time.Millisecond).give("gone", gone).pass(100*time.Millisecond).give("gone", gone)
	p.check(`
		gone: (start)
		gone: (start)
		gone: stop-sigterm, SIGTERM to all`)
	if p.in.Result != service.ExitCode || p.in.Reason != "the daemon that /pid names exited with status 3" {
		t.Errorf("it ends with %s: %s", p.in.Result, p.in.Reason)
	}
	// Nor is it over before it is known how it has ended.
	untold := Event{Kind: MainMissing, Gone: true, Untold: true, Exit: service.Exit{Unknown: true}}
	p = started().give("gone", untold).pass(10*time.Second).give("gone", untold).give("gone", gone)
	p.check(`
		gone: (start)
		gone: (start)
		gone: stop-sigterm, SIGTERM to all`)
	if p.in.Reason != "the daemon that /pid names exited with status 3" {
		t.Errorf("it ends: %s", p.in.Reason)
	}
	started().give("gone", gone).pass(900*time.Millisecond).give("unreadable", Event{Kind: MainMissing}).
		pass(time.Second).give("gone", gone).give("found", Event{Kind: MainFound, PID: 200}).check(`
		gone: (start)
		unreadable: (start)
		gone: (start)
		found: running`)
}

// TestMainKnownBeforeTheFork: the daemon has told by MAINPID= who it is before
// the start command has ended.
func TestMainKnownBeforeTheFork(t *testing.T) {
	play(t, service.Service{Type: service.Forking, NotifyAccess: service.NotifyAll}).
		start().up().give("found", Event{Kind: MainFound, PID: 200}).control(0).check(`
		start: start, run start[0]
		up 101: (start)
		found: (start)
		control exits 0: running`)
}
