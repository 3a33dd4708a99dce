package hostd

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
)

// attached is a client that reads what comes.
type attached struct {
	*hostclient.Attached
	t   *testing.T
	out *io.PipeReader
	err chan error
	got []byte
}

func (d *daemon) attach(group string) *attached {
	d.t.Helper()
	a, err := d.client.Attach(d.ctx, group, hostapi.AttachRequest{Stdin: true})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = a.Close() })
	r, w := io.Pipe()
	all := &attached{Attached: a, t: d.t, out: r, err: make(chan error, 1)}
	go func() {
		err := a.CopyTo(w)
		_ = w.Close()
		all.err <- err
	}()
	return all
}

func (a *attached) say(text string) {
	a.t.Helper()
	if _, err := a.Write([]byte(text)); err != nil {
		a.t.Fatal(err)
	}
}

// until reads on until a text has come.
func (a *attached) until(text string) {
	a.t.Helper()
	buf := make([]byte, 4096)
	for !bytes.Contains(a.got, []byte(text)) {
		n, err := a.out.Read(buf)
		a.got = append(a.got, buf[:n]...)
		if err != nil {
			a.t.Fatalf("%v before %q, but %q came", err, text, a.got)
		}
	}
	_, a.got, _ = bytes.Cut(a.got, []byte(text))
}

// end waits for the end of the connection.
func (a *attached) end() error {
	_, _ = io.Copy(io.Discard, a.out)
	return <-a.err
}

func readsFrom(name, script string, c service.Console) service.Group {
	g := pod(name, script)
	g.Services[0].Exec.Console = &c
	return g
}

const reader = `echo begun; while read line; do echo "<$line>"; done; echo "no more"; exec sleep 1000`

// TestAttachPipe: what several write one after the other is read, by one process,
// through the death of legiond; its end is never seen.
func TestAttachPipe(t *testing.T) {
	d := newDaemon(t, nil)
	d.put(readsFrom("cat", reader, service.Console{Stdin: true}))
	pid := d.running("cat").Main.PID
	first := d.attach("cat")
	first.say("one\n")
	_ = first.CloseInput()
	d.said("cat", "<one>")
	_ = first.Close()

	second := d.attach("cat")
	d.crash()
	if err := second.end(); !errors.Is(err, hostclient.ErrLost) {
		t.Errorf("it ended with %v", err)
	}
	d.start()
	third := d.attach("cat")
	third.say("two\n")
	d.said("cat", "<two>")
	d.reexec()
	fourth := d.attach("cat")
	fourth.say("three\n")
	d.said("cat", "<three>")
	if s := d.running("cat"); s.Main.PID != pid || s.Restarts != 0 {
		t.Fatalf("process %d: %+v", pid, s)
	}
	kill(t, pid)
	if err := fourth.end(); err != nil {
		t.Errorf("at the end of the run: %v", err)
	}
	if lines := d.lines("cat"); slices.Contains(lines, "no more") {
		t.Errorf("it saw an end: %q", lines)
	}
}

// TestAttachOnce: the service sees the end of its input when the first who wrote
// has left, and there is no second.
func TestAttachOnce(t *testing.T) {
	d := newDaemon(t, nil)
	d.put(readsFrom("once", reader, service.Console{Stdin: true, Once: true}))
	d.said("once", "begun")
	d.crash()
	d.start()
	first := d.attach("once")
	first.say("one\ntwo\n")
	if err := first.CloseInput(); err != nil {
		t.Fatal(err)
	}
	d.said("once", "no more")
	if want := []string{"begun", "<one>", "<two>", "no more"}; !slices.Equal(d.lines("once"), want) {
		t.Errorf("it has read %q, want %q", d.lines("once"), want)
	}
	if _, err := d.client.Attach(d.ctx, "once", hostapi.AttachRequest{Stdin: true}); err == nil || !strings.Contains(err.Error(), "stdinOnce") {
		t.Errorf("a second one: %v", err)
	}
}

// TestAttachTerminal: a terminal is the process's own, follows the client's
// size, is seen by all who are attached, and outlives legiond.
func TestAttachTerminal(t *testing.T) {
	d := newDaemon(t, nil)
	d.put(readsFrom("tty", `trap 'echo size $(stty size)' WINCH; trap 'echo interrupted' INT; stty -echo
		test -t 0 && test -t 1 && test -t 2 && echo begun >/dev/tty
		while :; do read line && echo "<$line>"; done`, service.Console{Stdin: true, Terminal: true}))
	d.said("tty", "begun")
	first, second := d.attach("tty"), d.attach("tty")
	first.say("one\n")
	first.until("<one>")
	second.until("<one>")
	if err := first.Resize(33, 77); err != nil {
		t.Fatal(err)
	}
	first.say("\n")
	first.until("size 33 77")
	_ = first.Close()
	pid := d.running("tty").Main.PID

	d.said("tty", "<one>") // what a legiond that is killed has read and not written is lost
	d.crash()
	if err := second.end(); !errors.Is(err, hostclient.ErrLost) {
		t.Errorf("it ended with %v", err)
	}
	d.start()
	third := d.attach("tty")
	third.say("two\n")
	third.until("<two>")
	third.say("\x03\n") // the terminal makes a signal of it
	third.until("interrupted")
	d.reexec()
	fourth := d.attach("tty")
	fourth.say("three\n")
	fourth.until("<three>")
	if s := d.running("tty"); s.Main.PID != pid || s.Restarts != 0 {
		t.Fatalf("process %d: %+v", pid, s)
	}
	fourth.say("four\n")
	d.said("tty", "<four>") // the log comes after the client, and in order
	for _, want := range []string{"<one>\r", "<two>\r", "<three>\r"} {
		if lines := d.lines("tty"); !slices.Contains(lines, want) {
			t.Errorf("no %q in the log: %q", want, lines)
		}
	}
	kill(t, pid)
	if err := fourth.end(); err != nil {
		t.Errorf("at the end of the run: %v", err)
	}
}

// TestAttachLastWords: nothing that a process writes to its terminal before it
// ends is missing, to those attached or in the log.
func TestAttachLastWords(t *testing.T) {
	d := newDaemon(t, nil)
	g := readsFrom("last", `read line; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo "line $i"; done; echo "last words"`, service.Console{Stdin: true, Terminal: true})
	g.Services[0].Restart = service.Restart{}
	d.put(g)
	d.running("last")
	a := d.attach("last")
	a.say("go\n")
	a.until("line 2000\r\nlast words\r\n")
	if err := a.end(); err != nil {
		t.Errorf("at the end: %v", err)
	}
	if lines := d.lines("last"); len(lines) != 2002 || lines[2001] != "last words\r" { // what is typed is echoed
		t.Errorf("%d lines, at the end %q", len(lines), lines[max(len(lines)-2, 0):])
	}
}

// TestAttachRefused: what cannot be attached to says why.
func TestAttachRefused(t *testing.T) {
	d := newDaemon(t, nil)
	d.put(pod("plain", "exec sleep 1000"))
	d.put(readsFrom("mute", "exec sleep 1000", service.Console{Terminal: true}))
	d.running("plain")
	d.running("mute")
	for name, want := range map[string]string{
		"plain": "neither a standard input nor a terminal", "mute": "no standard input", "nobody": "there is no group nobody",
	} {
		if _, err := d.client.Attach(d.ctx, name, hostapi.AttachRequest{Stdin: true}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if _, err := d.client.Attach(d.ctx, "mute", hostapi.AttachRequest{}); err != nil {
		t.Errorf("to look only: %v", err)
	}
}
