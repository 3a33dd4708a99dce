package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

type peerKey struct{}

// WithPeer is http.Server's ConnContext: it notes who is at the other end of
// the unix socket.
func WithPeer(ctx context.Context, c net.Conn) context.Context {
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	_ = raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}

// Handler serves the API of package hostapi.
func (h *Host) Handler() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, f func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { answer(w, r, http.StatusOK, f) })
	}
	change := func(method, path string, status int, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(method+" "+path, func(w http.ResponseWriter, r *http.Request) {
			answer(w, r, status, func(r *http.Request) (any, error) {
				if err := mayChange(r); err != nil {
					return nil, err
				}
				return f(r)
			})
		})
	}
	get("/v1/host", func(r *http.Request) (any, error) { return h.Info(r.Context()) })
	get("/v1/groups", func(r *http.Request) (any, error) { return h.Groups(r.Context()) })
	get("/v1/groups/{name}", func(r *http.Request) (any, error) { return h.Group(r.Context(), r.PathValue("name")) })
	get("/v1/groups/{name}/explain", func(r *http.Request) (any, error) { return h.Explain(r.Context(), r.PathValue("name")) })
	change("PUT", "/v1/groups/{name}", http.StatusOK, h.httpPut)
	change("DELETE", "/v1/groups/{name}", http.StatusAccepted, func(r *http.Request) (any, error) {
		grace, err := duration(r.URL.Query(), "grace")
		if err != nil {
			return nil, err
		}
		return hostapi.Result{Changed: true, Message: "it is being stopped and then forgotten"}, h.Delete(r.Context(), r.PathValue("name"), requester(r), grace)
	})
	change("POST", "/v1/groups/{name}/{verb}", http.StatusOK, func(r *http.Request) (any, error) {
		grace, err := duration(r.URL.Query(), "grace")
		if err != nil {
			return nil, err
		}
		wait := r.URL.Query().Get("wait") != "false"
		template := job{by: requester(r), grace: grace, mode: service.JobMode(r.URL.Query().Get("mode"))}
		return h.doVerb(r.Context(), r.PathValue("name"), r.PathValue("verb"), template, wait)
	})
	change("POST", "/v1/groups/{name}/kill", http.StatusOK, h.httpKill)
	change("POST", "/v1/groups/{name}/freeze", http.StatusOK, h.httpFreeze(true))
	change("POST", "/v1/groups/{name}/thaw", http.StatusOK, h.httpFreeze(false))
	change("POST", "/v1/groups/{name}/clean", http.StatusOK, h.httpClean)
	change("POST", "/v1/reload", http.StatusOK, func(r *http.Request) (any, error) { return h.Reload(r.Context()) })
	change("POST", "/v1/reexec", http.StatusOK, func(r *http.Request) (any, error) { return h.Reexec(r.Context()) })
	change("POST", "/v1/poweroff", http.StatusOK, h.httpPoweroff)
	mux.HandleFunc("POST /v1/groups/{name}/exec", h.httpExec)
	mux.HandleFunc("POST /v1/groups/{name}/attach", h.httpAttach)
	mux.HandleFunc("GET /metrics", h.httpMetrics)
	mux.HandleFunc("GET /v1/watch", h.httpWatch)
	mux.HandleFunc("GET /v1/groups/{name}/logs", h.httpLogs)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, failure("not-found", "the paths are those of package hostapi, below /v1", "there is no %s %s", r.Method, r.URL.Path))
	})
	return mux
}

// requester says who asks, for the people who read it later.
func requester(r *http.Request) string {
	if c, ok := r.Context().Value(peerKey{}).(*unix.Ucred); ok {
		return fmt.Sprintf("request by uid %d", c.Uid)
	}
	return "request"
}

// mayChange: root and the user that legiond runs as may change things.
func mayChange(r *http.Request) error {
	c, ok := r.Context().Value(peerKey{}).(*unix.Ucred)
	switch {
	case !ok:
		return failure("denied", "connect through the unix socket", "who asks is not known")
	case c.Uid == 0 || int(c.Uid) == os.Geteuid():
		return nil
	}
	return failure("denied", "use sudo, or ask as that user", "uid %d may look but not change anything here; root and uid %d may", c.Uid, os.Geteuid())
}

func answer(w http.ResponseWriter, r *http.Request, status int, f func(*http.Request) (any, error)) {
	v, err := f(r)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

// wireError is the error as the client gets it.
func wireError(err error) *hostapi.Error {
	var e *hostapi.Error
	if !errors.As(err, &e) {
		e = &hostapi.Error{Code: "failed", Message: err.Error()}
	}
	return e
}

func refuse(w http.ResponseWriter, err error) {
	e := wireError(err)
	status := map[string]int{
		"not-found": http.StatusNotFound, "invalid": http.StatusBadRequest, "conflict": http.StatusConflict,
		"denied": http.StatusForbidden, "timeout": http.StatusGatewayTimeout,
	}[e.Code]
	if status == 0 {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // the client may be gone
}

func (h *Host) httpPut(r *http.Request) (any, error) {
	var spec service.Group
	d := json.NewDecoder(io.LimitReader(r.Body, 8<<20))
	d.DisallowUnknownFields()
	if err := d.Decode(&spec); err != nil {
		return nil, failure("invalid", "the body is a service.Group in JSON", "cannot read the group: %v", err)
	}
	if name := r.PathValue("name"); spec.Name != name {
		return nil, failure("invalid", "", "the path names %q, the body %q", name, spec.Name)
	}
	return h.Put(r.Context(), spec, requester(r))
}

func duration(q url.Values, name string) (*time.Duration, error) {
	s := q.Get(name)
	if s == "" {
		return nil, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return nil, failure("invalid", "write it as 30s or 1m", "%s=%s is not a duration", name, s)
	}
	return &d, nil
}

// flusher sends each write at once.
type flusher struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.c.Flush()
	}
	return n, err
}

func (h *Host) httpWatch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	c := http.NewResponseController(w)
	err := h.Watch(r.Context(), func(events []hostapi.Event) error {
		for _, ev := range events {
			if err := out.Encode(ev); err != nil {
				return err
			}
		}
		return c.Flush()
	})
	if err != nil {
		h.o.Log.Debug("a watch ended", "error", err)
	}
}

func (h *Host) httpLogs(w http.ResponseWriter, r *http.Request) {
	q, err := logQuery(r.URL.Query())
	if err == nil {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		err = h.Logs(r.Context(), r.PathValue("name"), q, flusher{w, http.NewResponseController(w)})
	}
	if err != nil && r.Context().Err() == nil {
		refuse(w, err)
	}
}

func logQuery(v url.Values) (hostapi.LogQuery, error) {
	q := hostapi.LogQuery{Service: v.Get("Service"), Tail: -1}
	for name, set := range map[string]func(string) error{
		"Follow":     func(s string) (err error) { q.Follow, err = strconv.ParseBool(s); return },
		"Previous":   func(s string) (err error) { q.Previous, err = strconv.ParseBool(s); return },
		"Tail":       func(s string) (err error) { q.Tail, err = strconv.Atoi(s); return },
		"Run":        func(s string) (err error) { q.Run, err = strconv.ParseUint(s, 10, 64); return },
		"LimitBytes": func(s string) (err error) { q.LimitBytes, err = strconv.ParseInt(s, 10, 64); return },
		"Since":      func(s string) (err error) { q.Since, err = time.Parse(time.RFC3339Nano, s); return },
	} {
		if s := v.Get(name); s != "" {
			if err := set(s); err != nil {
				return q, failure("invalid", "", "the query's %s=%s cannot be read: %v", name, s, err)
			}
		}
	}
	return q, nil
}
