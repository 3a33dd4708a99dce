package pods

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

// session is a kubectl that stays, with what it has written so far.
type session struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	// terminal is the near end of the one it is at, nil for none.
	terminal *os.File

	mu      sync.Mutex
	lines   []string
	seen    int // as far as a script has looked
	changed chan struct{}
	ended   bool
}

// kubectl is the machine's, where it has one, else the one that is built in.
func (f *fleet) kubectl(args ...string) *exec.Cmd {
	if path, err := exec.LookPath("kubectl"); err == nil {
		cmd := exec.Command(path, args...)
		cmd.Env = f.environ()
		return cmd
	}
	cmd := exec.Command(f.binary("legion"), append([]string{"kubectl"}, args...)...)
	cmd.Env = f.environ()
	return cmd
}

// session starts one, at a terminal of 33 rows and 77 columns or with a pipe.
func (f *fleet) session(terminal bool, args ...string) (*session, error) {
	s := &session{cmd: f.kubectl(args...), changed: make(chan struct{})}
	if terminal {
		near, err := pty.StartWithSize(s.cmd, &pty.Winsize{Rows: 33, Cols: 77})
		if err != nil {
			return nil, err
		}
		s.in, s.terminal = near, near
		go s.follow(near)
		return s, nil
	}
	out, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.cmd.Stdout, s.cmd.Stderr = theirs, theirs
	if s.in, err = s.cmd.StdinPipe(); err == nil {
		err = s.cmd.Start()
	}
	_ = theirs.Close()
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	go s.follow(out)
	return s, nil
}

func (s *session) follow(out *os.File) {
	for in := bufio.NewScanner(out); in.Scan(); {
		s.mu.Lock()
		s.lines = append(s.lines, string(bytes.TrimRight(in.Bytes(), "\r")))
		s.tell()
		s.mu.Unlock()
	}
	_ = s.cmd.Wait()
	if s.terminal == nil {
		_ = out.Close()
	}
	s.mu.Lock()
	s.ended = true
	s.tell()
	s.mu.Unlock()
}

func (s *session) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// await waits until ok, which is called with mu held, says so.
func (s *session) await(ok func() bool) error {
	late := time.After(patience)
	for {
		s.mu.Lock()
		changed, done, ended, text := s.changed, ok(), s.ended, strings.Join(s.lines, "\n\t")
		s.mu.Unlock()
		switch {
		case done:
			return nil
		case ended:
			return fmt.Errorf("%s has ended (%v); it wrote:\n\t%s", s.cmd, s.cmd.ProcessState, text)
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("not within %s; %s wrote:\n\t%s", patience, s.cmd, text)
		}
	}
}

// see waits for a line after those seen before.
func (s *session) see(pattern string) error {
	want, err := regexp.Compile("^(?:" + pattern + ")$")
	if err != nil {
		return err
	}
	err = s.await(func() bool {
		for i := s.seen; i < len(s.lines); i++ {
			if want.MatchString(s.lines[i]) {
				s.seen = i + 1
				return true
			}
		}
		return false
	})
	if err != nil {
		return fmt.Errorf("no line %q: %w", pattern, err)
	}
	return nil
}

// end kills it, if it still runs.
func (s *session) end() {
	_ = s.cmd.Process.Kill()
	_ = s.await(func() bool { return s.ended })
	_ = s.in.Close()
}

func (s *script) session(ts *testscript.TestScript, name string) *session {
	one := s.sessions[name]
	if one == nil {
		ts.Fatalf("there is no session %s", name)
	}
	return one
}

// begin starts a kubectl that stays: begin [-t] NAME ARGUMENT…
func begin(ts *testscript.TestScript, neg bool, args []string) {
	terminal := len(args) > 0 && args[0] == "-t"
	if terminal {
		args = args[1:]
	}
	if neg || len(args) < 2 {
		ts.Fatalf("usage: begin [-t] NAME ARGUMENT…")
	}
	s := of(ts)
	one, err := s.fleet.session(terminal, append([]string{"-n", s.namespace}, s.words(args[1:])...)...)
	ts.Check(err)
	if s.sessions == nil {
		s.sessions = map[string]*session{}
	}
	s.sessions[args[0]] = one
	ts.Defer(one.end)
}

// say types a line, \xNN for what is no letter: say NAME TEXT
func say(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: say NAME TEXT")
	}
	text, err := strconv.Unquote(`"` + args[1] + `\n"`)
	ts.Check(err)
	_, err = io.WriteString(of(ts).session(ts, args[0]).in, text)
	ts.Check(err)
}

// see waits for lines, one after the other: see NAME PATTERN…
func see(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: see NAME PATTERN…")
	}
	for _, pattern := range of(ts).words(args[1:]) {
		ts.Check(of(ts).session(ts, args[0]).see(pattern))
	}
}

// size gives its terminal another size: size NAME ROWS COLUMNS
func size(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: size NAME ROWS COLUMNS")
	}
	rows, err1 := strconv.ParseUint(args[1], 10, 16)
	columns, err2 := strconv.ParseUint(args[2], 10, 16)
	ts.Check(errors.Join(err1, err2))
	ts.Check(pty.Setsize(of(ts).session(ts, args[0]).terminal, &pty.Winsize{Rows: uint16(rows), Cols: uint16(columns)}))
}

// leave ends a kubectl's input, or with ! kills the kubectl: leave NAME
func leave(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: leave NAME")
	}
	one := of(ts).session(ts, args[0])
	if neg {
		one.end()
		return
	}
	ts.Check(one.in.Close())
}

// ended waits until a kubectl has ended, with 0 or with ! another status, and
// sees to it that it has said something: ended NAME PATTERN…
func ended(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: ended NAME PATTERN…")
	}
	one := of(ts).session(ts, args[0])
	ts.Check(one.await(func() bool { return one.ended }))
	missing, err := match(one.lines, of(ts).words(args[1:]))
	ts.Check(err)
	if len(missing) > 0 || neg == one.cmd.ProcessState.Success() {
		ts.Fatalf("%v; missing %q in:\n\t%s", one.cmd.ProcessState, missing, strings.Join(one.lines, "\n\t"))
	}
}

// binary is the path of one of the programs that make has built.
func (f *fleet) binary(name string) string {
	bin := os.Getenv("LEGION_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	return filepath.Join(bin, name)
}

// environ finds the fleet.
func (f *fleet) environ() []string {
	return append(os.Environ(), "LEGION_DIR="+f.home(), "KUBECONFIG="+filepath.Join(f.home(), "admin.kubeconfig"))
}
