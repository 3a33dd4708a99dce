package host

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

func consoleKey(cgroup string) string { return ConsoleKey + cgroup }

// openConsole makes what a run reads from. The terminal of a container is made
// by its runtime; one that runs in the foreground has one of its own, too, and
// passes on what comes.
func (h *Host) openConsole(cgroup string, spec *service.Service, q *Request) error {
	socket := ""
	if c := spec.Exec.Container; c != nil && spec.Exec.Terminal() && spec.Type != service.Oneshot {
		socket = filepath.Join(c.Bundle, service.ConsoleSocket)
	}
	fd, err := h.o.Consoles.Open(cgroup, spec.Exec.Console, socket, q.Stdout)
	if err != nil {
		return err
	}
	h.point("after a console")
	q.Stdin, q.TTY = fd, fd != 0 && spec.Exec.Terminal()
	return nil
}

// resumeConsole goes on with what the service reads from.
func (h *Host) resumeConsole(u *unit, log string) {
	files := u.console
	u.console = nil
	if err := h.o.Consoles.Resume(u.cgroup, files, log); err != nil {
		h.note(u.g, "cannot take up its terminal again", err)
	}
}

// dropConsoles gives up those of services that do not run.
func (h *Host) dropConsoles() {
	for _, g := range h.groups {
		for _, u := range g.services {
			if len(u.console) > 0 {
				h.giveUp(consoleKey(u.cgroup), u.console)
				u.console = nil
			}
		}
	}
}

// attachUnit finds the service that somebody wants to attach to.
func (h *Host) attachUnit(name string, r hostapi.AttachRequest) (*unit, error) {
	u, err := h.runningUnit(name, r.Service, "nobody can attach to it")
	if err != nil {
		return nil, err
	}
	switch c := u.spec.Exec.Console; {
	case c == nil:
		return nil, failure("conflict", "", "%s has neither a standard input nor a terminal that could be attached to", u.title())
	case r.Stdin && !c.Stdin:
		return nil, failure("conflict", "", "%s has no standard input that could be written to", u.title())
	}
	return u, nil
}

// httpAttach turns the connection into one of lines in both directions.
func (h *Host) httpAttach(w http.ResponseWriter, r *http.Request) {
	var req hostapi.AttachRequest
	err := mayChange(r)
	if err == nil {
		if err = json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&req); err != nil {
			err = failure("invalid", "the body is an AttachRequest in JSON", "cannot read the request: %v", err)
		}
	}
	if err == nil && r.Header.Get("Upgrade") != hostapi.AttachProtocol {
		err = failure("invalid", "", "the header Upgrade: %s is missing", hostapi.AttachProtocol)
	}
	title, cgroup := "", ""
	if err == nil {
		var refused error
		err = h.do(r.Context(), func() {
			var u *unit
			if u, refused = h.attachUnit(r.PathValue("name"), req); refused == nil {
				title, cgroup = u.title(), u.cgroup
			}
		})
		err = errors.Join(err, refused)
	}
	if err != nil {
		refuse(w, err)
		return
	}
	conn := upgrade(w, hostapi.AttachProtocol)
	if conn == nil {
		return
	}
	defer conn.Close()
	if err := h.o.Consoles.Attach(cgroup, req.Stdin, conn); err != nil {
		err = failure("conflict", "", "cannot attach to %s: %v", title, err)
		_ = json.NewEncoder(conn).Encode(hostapi.AttachOutput{Error: wireError(err)}) // the client may be gone
	}
}
