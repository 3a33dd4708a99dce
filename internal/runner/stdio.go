package runner

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/bundle"
	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// stdio are the three standard descriptors of a process to be. They are opened
// for it alone and in blocking mode: descriptor flags such as O_NONBLOCK belong
// to the open file, not to the descriptor, and must not be shared with legiond.
type stdio struct {
	fds  [3]int
	open []int
}

func (s *stdio) close() {
	for _, fd := range s.open {
		unix.Close(fd)
	}
}

func (s *stdio) add(path string, flags int, mode uint32) (int, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, mode)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", path, err)
	}
	s.open = append(s.open, fd)
	return fd, nil
}

// openStdio opens what StandardInput=, StandardOutput= and StandardError= name.
func (q *Request) openStdio(c *service.ExecContext, id identity, s *stdio) *StartError {
	fail := func(what string, code int, err error) *StartError {
		return &StartError{Stage: "open " + what, Err: err, Code: code}
	}
	if q.Stdio != nil {
		return q.givenStdio(id, s)
	}
	umask := uint32(umaskOf(c))
	var err error
	if c.StandardInput == "socket" {
		return q.socketStdio(c, id, s)
	}
	path, file := strings.CutPrefix(c.StandardInput, "file:")
	switch {
	case q.Stdin != 0:
		s.fds[0] = q.Stdin
		err = give(q.Stdin, id)
	case file:
		s.fds[0], err = s.inputFile(path)
	case c.StandardInput == "data":
		s.fds[0], err = s.inputData(c.InputData)
	default:
		s.fds[0], err = s.add("/dev/null", unix.O_RDONLY, 0)
	}
	if err != nil {
		return fail("standard input", sandbox.CodeStdin, err)
	}
	if s.fds[1], err = s.output(c.StandardOutput, q.Stdout, umask, id); err != nil {
		return fail("standard output", sandbox.CodeStdout, err)
	}
	errWord := c.StandardError
	switch {
	case errWord == "" && toLog(c.StandardOutput), errWord == "inherit" && toLog(c.StandardOutput):
		errWord = "journal"
	case errWord == "", errWord == "inherit", errWord == c.StandardOutput:
		s.fds[2] = s.fds[1]
		return nil
	}
	if s.fds[2], err = s.output(errWord, q.Stderr, umask, id); err != nil {
		return fail("standard error", sandbox.CodeStdout, err)
	}
	return nil
}

// givenStdio takes the descriptors of the request. As with FIFOs, the process
// may open /dev/stderr and its like again.
func (q *Request) givenStdio(id identity, s *stdio) *StartError {
	s.fds = *q.Stdio
	for _, fd := range s.fds {
		var st unix.Stat_t
		if id.credential == nil || unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFCHR && !q.TTY {
			continue // /dev/null stays whose it is
		}
		if err := give(fd, id); err != nil {
			return &StartError{Stage: "open standard input and output", Err: err, Code: sandbox.CodeStdin}
		}
	}
	return nil
}

// give makes a file the process's own, as far as there is a right to.
func give(fd int, id identity) error {
	if id.credential == nil {
		return nil
	}
	if err := unix.Fchown(fd, int(id.uid), int(id.gid)); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("give it to user %d: %w", id.uid, err)
	}
	return nil
}

// belong gives what a container with users of its own reads and writes to its
// root, who gives it to whoever its process is.
func (s *stdio) belong(c *service.Container) *StartError {
	if c == nil || !c.Users {
		return nil
	}
	owner, err := bundle.Owner(c)
	for _, fd := range s.fds {
		var st unix.Stat_t
		if err == nil && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			err = unix.Fchown(fd, owner, owner)
		}
	}
	if err != nil {
		return &StartError{Stage: "give standard input and output to the container's users", Err: err, Code: sandbox.CodeStdin}
	}
	return nil
}

// socketStdio gives the process the one socket that is passed to it for its
// standard input and output, as inetd does. It then has no LISTEN_FDS.
func (q *Request) socketStdio(c *service.ExecContext, id identity, s *stdio) *StartError {
	fail := func(what string, code int, err error) *StartError {
		return &StartError{Stage: "open " + what, Err: err, Code: code}
	}
	if len(q.Files) != 1 {
		return fail("standard input", sandbox.CodeStdin, fmt.Errorf("StandardInput=socket needs one socket, and %d are passed", len(q.Files)))
	}
	s.fds[0], s.fds[1] = q.Files[0].FD, q.Files[0].FD
	if err := unix.SetNonblock(s.fds[0], false); err != nil {
		return fail("standard input", sandbox.CodeStdin, err)
	}
	q.Files = nil
	umask := uint32(umaskOf(c))
	var err error
	if w := c.StandardOutput; w != "" && w != "inherit" && w != "socket" {
		if s.fds[1], err = s.output(w, q.Stdout, umask, id); err != nil {
			return fail("standard output", sandbox.CodeStdout, err)
		}
	}
	switch c.StandardError {
	case "socket":
		s.fds[2] = s.fds[0]
	case "inherit":
		s.fds[2] = s.fds[1]
	default:
		if s.fds[2], err = s.output(c.StandardError, q.Stderr, umask, id); err != nil {
			return fail("standard error", sandbox.CodeStdout, err)
		}
	}
	return nil
}

// toLog says whether a word of StandardOutput= means Legion's log. "inherit"
// would be the standard input's file, which for a daemon is /dev/null; what a
// person means by it is the log.
func toLog(word string) bool {
	kind, _, file := strings.Cut(word, ":")
	return !file && kind != "null" || kind == "fd" || kind == "socket"
}

func (s *stdio) output(word, fifo string, umask uint32, id identity) (int, error) {
	kind, path, _ := strings.Cut(word, ":")
	flags := unix.O_WRONLY | unix.O_CREAT
	switch {
	case toLog(word) && fifo != "":
		return s.addFIFO(fifo, id)
	case toLog(word), kind == "null":
		return s.add("/dev/null", unix.O_WRONLY, 0)
	case kind == "append":
		flags |= unix.O_APPEND
	case kind == "truncate":
		flags |= unix.O_TRUNC
	case kind != "file":
		return -1, fmt.Errorf("%q is not understood", word)
	}
	if !filepath.IsAbs(path) {
		return -1, fmt.Errorf("%q: the path must be absolute", word)
	}
	return s.add(path, flags, 0o666&^umask)
}

// addFIFO opens a FIFO for reading too: the process then holds a reader
// itself, and no write of it fails while legiond is not there to read.
func (s *stdio) addFIFO(path string, id identity) (int, error) {
	fd, err := s.add(path, unix.O_RDWR, 0)
	if err != nil {
		return -1, err
	}
	// So that the service itself can open /dev/stderr again.
	if err := give(fd, id); err != nil {
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	return fd, nil
}

func umaskOf(c *service.ExecContext) int {
	if c.UMask != nil {
		return int(*c.UMask & 0o777)
	}
	return 0o022
}

// Lost names what of a context's standard streams Legion does in another way,
// for the service's status.
func Lost(c *service.ExecContext) []string {
	var out []string
	if kind, _, _ := strings.Cut(c.StandardInput, ":"); kind != "" && kind != "null" && kind != "file" && kind != "socket" && kind != "data" {
		out = append(out, fmt.Sprintf("StandardInput=%s: it reads from /dev/null", c.StandardInput))
	}
	for _, o := range [][2]string{{"StandardOutput", c.StandardOutput}, {"StandardError", c.StandardError}} {
		switch kind, _, _ := strings.Cut(o[1], ":"); kind {
		case "", "null", "file", "append", "truncate", "journal", "inherit", "syslog":
		default:
			out = append(out, fmt.Sprintf("%s=%s: it goes to Legion's log", o[0], o[1]))
		}
	}
	return out
}
