// Package hostclient asks a legiond over its unix socket; the command line and
// the agent are its users. The paths and bodies are those of package hostapi.
package hostclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/service"
)

// Client speaks to one legiond. Its errors are *hostapi.Error where legiond
// has answered, or could not be reached (code "unreachable").
type Client struct {
	socket string
	http   *http.Client
}

// New makes a client for the socket; nothing is connected yet.
func New(socket string) *Client {
	c := &Client{socket: socket}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }
	c.http = &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConns: 4, IdleConnTimeout: 30 * time.Second}}
	return c
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	path, err := filepath.Abs(c.socket)
	if err == nil {
		path, err = notify.Short(path)
	}
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// Close gives idle connections up.
func (c *Client) Close() { c.http.CloseIdleConnections() }

func (c *Client) unreachable(err error) error {
	e := &hostapi.Error{Code: "unreachable", Message: fmt.Sprintf("cannot reach legiond at %s: %v", c.socket, err)}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Message = fmt.Sprintf("cannot reach legiond: there is no socket %s", c.socket)
		e.Hint = "start legiond, or name its socket with -H"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Message = fmt.Sprintf("cannot reach legiond: nobody listens on %s", c.socket)
		e.Hint = "legiond has ended; start it again"
	case errors.Is(err, fs.ErrPermission):
		e.Message = fmt.Sprintf("cannot reach legiond: no right to open %s", c.socket)
		e.Code, e.Hint = "denied", "ask as root, or as the user that legiond runs as"
	}
	return e
}

func (c *Client) send(ctx context.Context, method, path string, query url.Values, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("cannot write the request: %w", err)
		}
		r = bytes.NewReader(data)
	}
	u := url.URL{Scheme: "http", Host: "legiond", RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, err
	}
	req.URL.Path, err = url.PathUnescape(path)
	if err != nil {
		return nil, err
	}
	req.URL.RawPath = path
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.unreachable(err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, refusal(resp)
}

// refusal is what an answer that is no success says.
func refusal(resp *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	e := &hostapi.Error{}
	if json.Unmarshal(data, e) != nil || e.Message == "" {
		e = &hostapi.Error{Code: "failed", Message: fmt.Sprintf("legiond answered %s: %s", resp.Status, bytes.TrimSpace(data))}
	}
	return e
}

func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, body any) (T, error) {
	var v T
	resp, err := c.send(ctx, method, path, query, body)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("cannot read legiond's answer to %s %s: %w", method, path, err)
	}
	return v, nil
}

func group(name, rest string) string { return "/v1/groups/" + url.PathEscape(name) + rest }

// Info describes the host.
func (c *Client) Info(ctx context.Context) (hostapi.Info, error) {
	return call[hostapi.Info](ctx, c, "GET", "/v1/host", nil, nil)
}

// Groups lists all groups by name.
func (c *Client) Groups(ctx context.Context) ([]hostapi.Group, error) {
	return call[[]hostapi.Group](ctx, c, "GET", "/v1/groups", nil, nil)
}

// Group gives one group.
func (c *Client) Group(ctx context.Context, name string) (hostapi.Group, error) {
	return call[hostapi.Group](ctx, c, "GET", group(name, ""), nil, nil)
}

// Put defines a group; it is kept on disk, and started if it is for boot.
func (c *Client) Put(ctx context.Context, g service.Group) (hostapi.Group, error) {
	return call[hostapi.Group](ctx, c, "PUT", group(g.Name, ""), nil, g)
}

// Delete asks for the stop and then the end of a group; it does not wait. A
// nil grace is the group's own.
func (c *Client) Delete(ctx context.Context, name string, grace *time.Duration) error {
	q := url.Values{}
	if grace != nil {
		q.Set("grace", grace.String())
	}
	_, err := call[hostapi.Result](ctx, c, "DELETE", group(name, ""), q, nil)
	return err
}

// Do carries out a verb (start, stop, restart, reload, reset-failed); with
// wait it returns when that is done.
func (c *Client) Do(ctx context.Context, name, verb string, wait bool) (hostapi.Result, error) {
	return c.DoIn(ctx, "", name, verb, wait)
}

// DoIn is Do in a mode of the job, empty for the default.
func (c *Client) DoIn(ctx context.Context, mode service.JobMode, name, verb string, wait bool) (hostapi.Result, error) {
	q := url.Values{"wait": {strconv.FormatBool(wait)}}
	if mode != "" {
		q.Set("mode", string(mode))
	}
	return call[hostapi.Result](ctx, c, "POST", group(name, "/"+verb), q, nil)
}

// Stop asks for the stop of a group within grace; it does not wait.
func (c *Client) Stop(ctx context.Context, name string, grace time.Duration) error {
	_, err := call[hostapi.Result](ctx, c, "POST", group(name, "/stop"), url.Values{"grace": {grace.String()}}, nil)
	return err
}

// Kill sends a signal, a Linux number, to a group's "main", "control" or "all"
// processes.
func (c *Client) Kill(ctx context.Context, name, whom string, signal int) error {
	q := url.Values{"signal": {strconv.Itoa(signal)}, "whom": {whom}}
	_, err := call[hostapi.Result](ctx, c, "POST", group(name, "/kill"), q, nil)
	return err
}

// Freeze suspends the processes of a group, or lets them go on.
func (c *Client) Freeze(ctx context.Context, name string, frozen bool) error {
	_, err := call[hostapi.Result](ctx, c, "POST", group(name, map[bool]string{true: "/freeze", false: "/thaw"}[frozen]), nil, nil)
	return err
}

// Clean removes what a group that is down has left.
func (c *Client) Clean(ctx context.Context, name string, what []string) error {
	_, err := call[hostapi.Result](ctx, c, "POST", group(name, "/clean"), url.Values{"what": what}, nil)
	return err
}

// Explain says why a group is as it is.
func (c *Client) Explain(ctx context.Context, name string) (hostapi.Explanation, error) {
	return call[hostapi.Explanation](ctx, c, "GET", group(name, "/explain"), nil, nil)
}

// Reload has the unit files read again.
func (c *Client) Reload(ctx context.Context) (hostapi.ReloadResult, error) {
	return call[hostapi.ReloadResult](ctx, c, "POST", "/v1/reload", nil, nil)
}

// Reexec has legiond execute its program anew; it returns before that is done,
// and Info's StartedAt tells when it is.
func (c *Client) Reexec(ctx context.Context) (hostapi.Result, error) {
	return call[hostapi.Result](ctx, c, "POST", "/v1/reexec", nil, nil)
}

// Poweroff stops everything and then legiond; it returns when all is down.
func (c *Client) Poweroff(ctx context.Context) (hostapi.Result, error) {
	return call[hostapi.Result](ctx, c, "POST", "/v1/poweroff", nil, nil)
}

// End is Poweroff with what becomes of the machine: an action, the status that
// legiond exits with, and the argument of a reboot.
func (c *Client) End(ctx context.Context, action service.Action, status int, argument string) (hostapi.Result, error) {
	q := url.Values{"action": {string(action)}, "status": {strconv.Itoa(status)}, "argument": {argument}}
	return call[hostapi.Result](ctx, c, "POST", "/v1/poweroff", q, nil)
}

// Logs gives log lines in the CRI format; close the reader to end a follow.
func (c *Client) Logs(ctx context.Context, name string, q hostapi.LogQuery) (io.ReadCloser, error) {
	v := url.Values{"Tail": {strconv.Itoa(q.Tail)}}
	if q.Service != "" {
		v.Set("Service", q.Service)
	}
	if q.Follow {
		v.Set("Follow", "true")
	}
	if q.Previous {
		v.Set("Previous", "true")
	}
	if !q.Since.IsZero() {
		v.Set("Since", q.Since.Format(time.RFC3339Nano))
	}
	if q.Run != 0 {
		v.Set("Run", strconv.FormatUint(q.Run, 10))
	}
	if q.LimitBytes > 0 {
		v.Set("LimitBytes", strconv.FormatInt(q.LimitBytes, 10))
	}
	resp, err := c.send(ctx, "GET", group(name, "/logs"), v, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Watch calls f for each event until ctx ends, f fails or the connection does.
func (c *Client) Watch(ctx context.Context, f func(hostapi.Event) error) error {
	resp, err := c.send(ctx, "GET", "/v1/watch", nil, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	d := json.NewDecoder(resp.Body)
	for {
		var ev hostapi.Event
		if err := d.Decode(&ev); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return c.unreachable(err)
		}
		if err := f(ev); err != nil {
			return err
		}
	}
}
