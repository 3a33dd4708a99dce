package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// Exec runs a command beside the main process of a service, to its end; started
// is called with its process ID. When ctx ends first, it is killed.
func (h *Host) Exec(ctx context.Context, name string, r hostapi.ExecRequest, stdio [3]int, started func(pid int)) (service.Exit, error) {
	var q ExecRequest
	var path string
	var refused error
	err := h.do(ctx, func() {
		var u *unit
		if u, refused = h.execUnit(name, r); refused == nil {
			q, path = h.execRequest(u, r), u.cgroup
		}
	})
	if err = errors.Join(err, refused); err != nil {
		return service.Exit{}, err
	}
	q.Stdio = stdio
	if q.Cgroup, err = h.o.Cgroups.Create(path); err != nil {
		return service.Exit{}, fmt.Errorf("cannot run %q in %s: %w", r.Argv[0], name, err)
	}
	q.Enter, _ = h.o.Cgroups.Limit(path, q.limits)
	return h.o.Processes.Exec(ctx, q, started)
}

// execUnit finds the service that a command is for.
func (h *Host) execUnit(name string, r hostapi.ExecRequest) (*unit, error) {
	if len(r.Argv) == 0 || r.Argv[0] == "" {
		return nil, failure("invalid", "name a command", "there is no command to run in %s", name)
	}
	return h.runningUnit(name, r.Service, "no command can be run beside it")
}

// runningUnit finds a service that has a main process; without one it says what
// follows from that.
func (h *Host) runningUnit(name, of, so string) (*unit, error) {
	g := h.find(name)
	switch {
	case g == nil:
		return nil, unknown(name)
	case h.reexec || h.closing():
		return nil, failure("conflict", "ask again in a moment", "legiond is ending or being replaced, so %s: %s", so, name)
	}
	if g.frozen {
		return nil, failure("conflict", "systemctl thaw "+name, "%s is frozen, so %s", name, so)
	}
	for _, u := range g.services {
		if of != "" && u.spec.Name != of || of == "" && len(g.services) != 1 {
			continue
		}
		if m := u.in.Main; m == nil || m.PID == 0 {
			return nil, failure("conflict", "", "%s has no process now, so %s: it is %s", u.title(), so, u.in.State)
		}
		return u, nil
	}
	if of == "" {
		return nil, failure("invalid", "", "%s has %d services: name one", name, len(g.services))
	}
	return nil, failure("not-found", "", "%s has no service %s", name, of)
}

func (h *Host) execRequest(u *unit, r hostapi.ExecRequest) ExecRequest {
	spec := *u.spec
	// What a legiond without cgroups knows the process by.
	env := []string{"INVOCATION_ID=" + h.invocation(u, u.in.Run)}
	if r.TTY {
		env = append(env, "TERM=xterm")
	}
	if spec.Exec.Container != nil {
		return u.containerExec(&spec, r, env)
	}
	return ExecRequest{
		Request: Request{
			Group: u.g.spec.Name, Service: spec.Name, Run: u.in.Run, Context: u.context(), Env: env, Tmp: h.guests[u.g.spec.Name],
			Command: service.Command{Path: r.Argv[0], Argv: r.Argv, NoExpand: true},
		},
		Beside: u.in.Main.PID, TTY: r.TTY, limits: spec.Resources,
	}
}

// containerExec has the OCI runtime run the command: it knows the container's
// namespaces, user and environment.
func (u *unit) containerExec(spec *service.Service, r hostapi.ExecRequest, env []string) ExecRequest {
	c := spec.Exec.Container
	argv := []string{c.Program, "--root", c.State, "exec"}
	if r.TTY {
		argv = append(argv, "--tty")
	}
	argv = append(append(argv, c.ID), r.Argv...)
	return ExecRequest{
		Request: Request{
			Group: u.g.spec.Name, Service: spec.Name, Run: u.in.Run, Context: u.context(), Env: env,
			Command: service.Command{Path: c.Program, Argv: argv, NoExpand: true, FullPrivileges: true},
		},
		TTY: r.TTY, limits: spec.Resources,
	}
}

// httpExec turns the connection into one over which descriptors can be passed.
func (h *Host) httpExec(w http.ResponseWriter, r *http.Request) {
	var req hostapi.ExecRequest
	err := mayChange(r)
	if err == nil {
		if err = json.NewDecoder(io.LimitReader(r.Body, 8<<20)).Decode(&req); err != nil {
			err = failure("invalid", "the body is an ExecRequest in JSON", "cannot read the request: %v", err)
		}
	}
	if err == nil && r.Header.Get("Upgrade") != hostapi.ExecProtocol {
		err = failure("invalid", "", "the header Upgrade: %s is missing", hostapi.ExecProtocol)
	}
	name := r.PathValue("name")
	if err == nil {
		// Refused here, where the client can still read it as an answer.
		err2 := h.do(r.Context(), func() { _, err = h.execUnit(name, req) })
		err = errors.Join(err, err2)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	conn := upgrade(w, hostapi.ExecProtocol)
	if conn == nil {
		return
	}
	defer conn.Close()
	h.execOver(conn, name, req)
}

// upgrade takes over the connection of a request and says so, in the protocol
// that its header asks for; nil if the client is gone or has been refused.
func upgrade(w http.ResponseWriter, protocol string) net.Conn {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuse(w, err)
		return nil
	}
	_ = conn.SetDeadline(time.Time{})
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", protocol); err != nil {
		conn.Close()
		return nil
	}
	return conn
}

// execOver takes the descriptors, runs the command and tells of it.
func (h *Host) execOver(conn net.Conn, name string, r hostapi.ExecRequest) {
	out := json.NewEncoder(conn)
	fds, err := receive(conn)
	if err == nil && len(fds) != 3 {
		err = failure("invalid", "", "%d descriptors came, not three", len(fds))
	}
	defer func() { closeAll(fds) }()
	if err != nil {
		_ = out.Encode(hostapi.ExecEvent{Error: wireError(err)}) // the client may be gone
		return
	}
	ctx, cancel := context.WithCancel(h.ctx)
	defer cancel()
	go func() {
		_, _ = conn.Read(make([]byte, 1)) // until the client closes
		cancel()
	}()
	exit, err := h.Exec(ctx, name, r, [3]int(fds), func(pid int) {
		// The process alone holds them now: its end is theirs.
		closeAll(fds)
		fds = nil
		_ = out.Encode(hostapi.ExecEvent{PID: pid})
	})
	if err != nil {
		_ = out.Encode(hostapi.ExecEvent{Error: wireError(err)})
		return
	}
	_ = out.Encode(hostapi.ExecEvent{Exit: &exit})
}

// receive takes the descriptors that come with one byte.
func receive(conn net.Conn) ([]int, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, failure("invalid", "connect through the unix socket", "no descriptors can be passed over this connection")
	}
	data, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(3*4))
	_, n, flags, _, err := c.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, fmt.Errorf("cannot receive the descriptors: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	var fds []int
	for _, m := range messages {
		list, err1 := unix.ParseUnixRights(&m)
		err = errors.Join(err, err1)
		fds = append(fds, list...)
	}
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("there were too many")
	}
	if err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("cannot receive the descriptors: %w", err)
	}
	return fds, nil
}
