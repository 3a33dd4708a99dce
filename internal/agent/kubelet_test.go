package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
)

func TestLogOutput(t *testing.T) {
	const in = "2030-01-02T03:04:05.1Z stdout F one\n" +
		"2030-01-02T03:04:05.2Z stderr F \n" +
		"2030-01-02T03:04:05.3Z stdout P half \n" +
		"2030-01-02T03:04:05.4Z stdout F done\n" +
		"2030-01-02T03:04:05.5Z stderr F two words\n" +
		"not of the form\n"
	for name, test := range map[string]struct {
		out  logOutput
		want string
	}{
		"plain":      {logOutput{left: -1}, "one\n\nhalf done\ntwo words\nnot of the form\n"},
		"timestamps": {logOutput{left: -1, timestamps: true}, "2030-01-02T03:04:05.1Z one\n2030-01-02T03:04:05.2Z \n2030-01-02T03:04:05.3Z half done\n2030-01-02T03:04:05.5Z two words\nnot of the form\n"},
		"stderr":     {logOutput{left: -1, stream: "stderr"}, "\ntwo words\nnot of the form\n"},
		"limit":      {logOutput{left: 7}, "one\n\nha"},
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			test.out.w = &got
			if err := test.out.copyFrom(iotestOneByte{strings.NewReader(in)}, func() {}); err != nil {
				t.Fatal(err)
			}
			if got.String() != test.want {
				t.Errorf("got %q, want %q", got.String(), test.want)
			}
		})
	}
	long := strings.Repeat("x", 200<<10)
	var got bytes.Buffer
	out := logOutput{left: -1, w: &got}
	if err := out.copyFrom(strings.NewReader("2030-01-02T03:04:05Z stdout F "+long+"\n"), func() {}); err != nil || got.String() != long+"\n" {
		t.Errorf("a long line: %d bytes, %v", got.Len(), err)
	}
}

// iotestOneByte gives one byte at a time.
type iotestOneByte struct{ r io.Reader }

func (o iotestOneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

func FuzzLogLine(f *testing.F) {
	f.Add("2030-01-02T03:04:05Z stdout F text\n", true, int64(3))
	f.Add("a b", false, int64(-1))
	f.Fuzz(func(t *testing.T, line string, timestamps bool, limit int64) {
		var got bytes.Buffer
		out := logOutput{w: &got, timestamps: timestamps, left: max(limit, -1)}
		if err := out.copyFrom(strings.NewReader(line), func() {}); err != nil {
			t.Fatal(err)
		}
		if limit >= 0 && int64(got.Len()) > limit {
			t.Errorf("%d bytes, limit %d", got.Len(), limit)
		}
		if got.Len() > len(line)+1+strings.Count(line, "\n") {
			t.Errorf("%q grew to %q", line, got.String())
		}
	})
}

// fakeLogs has one text for each run; that of run late is not there when it is
// asked for first.
type fakeLogs struct {
	runs  map[uint64]string
	late  uint64
	asked []hostapi.LogQuery
}

func (f *fakeLogs) Logs(_ context.Context, _ string, q hostapi.LogQuery) (io.ReadCloser, error) {
	f.asked = append(f.asked, q)
	text, ok := f.runs[q.Run]
	if q.Run == f.late {
		f.late, ok = 0, false
	}
	if !ok {
		return nil, &hostapi.Error{Code: "not-found", Message: "no log of that run"}
	}
	return io.NopCloser(strings.NewReader(text)), nil
}

func (f *fakeLogs) Exec(context.Context, string, hostapi.ExecRequest, [3]*os.File) (service.Exit, error) {
	return service.Exit{}, errors.New("nothing is run here")
}

func (f *fakeLogs) Attach(context.Context, string, hostapi.AttachRequest) (*hostclient.Attached, error) {
	return nil, errors.New("there is nothing to attach to")
}

func TestContainerLogs(t *testing.T) {
	const stamp = "2030-01-02T03:04:05Z stdout F "
	logs := &fakeLogs{runs: map[uint64]string{1: stamp + "first\n", 2: stamp + "second\n", 3: stamp + "third\n"}}
	open, closed := make(chan struct{}), make(chan struct{})
	close(closed)
	targets := map[string]target{
		"run":     {UID: "u", Run: 2, Before: 1, Changed: closed, Done: open},
		"fresh":   {UID: "u", Run: 1, Changed: closed, Done: open},
		"waiting": {UID: "u", Waiting: "CreateContainerConfigError: no command"},
		"silent":  {UID: "u", Run: 9},
		"ended":   {UID: "u", Run: 1},
	}
	k := &kubelet{
		host: logs, log: slog.New(slog.NewTextHandler(io.Discard, nil)), now: time.Now,
		find: func(_ context.Context, _, pod, _ string) (target, error) {
			target, ok := targets[pod]
			if !ok {
				return target, errors.New("pod default/" + pod + " is not on node n1")
			}
			return target, nil
		},
		// The container runs once more and is gone then.
		again: func(context.Context, types.UID, string) (target, error) {
			return target{UID: "u", Run: 3, Changed: make(chan struct{}), Done: closed}, nil
		},
		list: func(context.Context) []*v1.Pod { return []*v1.Pod{{}} },
	}
	for path, want := range map[string]string{
		"/containerLogs/default/run/c":                          "200 second\n",
		"/containerLogs/default/run/c?previous=true":            "200 first\n",
		"/containerLogs/default/run/c?follow=true":              "200 second\nthird\n",
		"/containerLogs/default/run/c?follow=true&limitBytes=3": "200 sec",
		"/containerLogs/default/run/c?timestamps=true":          "200 2030-01-02T03:04:05Z second\n",
		"/containerLogs/default/run/c?tailLines=x":              `422 tailLines="x": must be a number of at least 0`,
		"/containerLogs/default/run/c?sinceTime=yesterday":      `422 sinceTime="yesterday"`,
		"/containerLogs/default/run/c?stream=Stderr&tailLines=": "200 ",
		"/containerLogs/default/fresh/c?previous=true":          "400 previous terminated container",
		"/containerLogs/default/waiting/c?follow=true":          "400 container \"c\" in pod \"waiting\" is waiting to start: CreateContainerConfigError: no command",
		"/containerLogs/default/silent/c":                       "200 ",
		"/containerLogs/default/none/c":                         "404 pod default/none is not on node n1",
		"/healthz":                                              "200 ok",
		"/runningpods/":                                         `200 {"kind":"PodList"`,
		"/exec/default/run/c":                                   "400 you must specify at least 1 of stdin, stdout, stderr",
		"/exec/default/none/c?output=1&command=ls":              "404 pod default/none is not on node n1",
		"/exec/default/waiting/c?output=1&command=ls":           "409 container \"c\" in pod \"waiting\" does not run: CreateContainerConfigError: no command",
		"/attach/default/ended/c?output=1":                      "409 container \"c\" in pod \"ended\" does not run: it has ended",
		"/portForward/default/none":                             "404 pod default/none is not on node n1",
	} {
		w := httptest.NewRecorder()
		k.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		code, text, _ := strings.Cut(want, " ")
		got := w.Body.String()
		if exact := code == "200" && !strings.HasPrefix(text, "{"); http.StatusText(w.Code) != statusText(code) || (exact && got != text) || !strings.HasPrefix(got, text) {
			t.Errorf("%s: %d %q, want %s", path, w.Code, got, want)
		}
	}
}

// TestFollowedRunBeginsLate: a run is told of before its log is there, be it the
// first one that a follower sees or a later one.
func TestFollowedRunBeginsLate(t *testing.T) {
	const stamp = "2030-01-02T03:04:05Z stdout F "
	news := make(chan struct{})
	close(news)
	for late, runs := range map[uint64][]uint64{2: {2, 2, 3}, 3: {2, 3, 3}} {
		look := func() (target, error) {
			if len(runs) == 0 {
				return target{UID: "u", Run: 3, Done: news}, nil
			}
			at := target{UID: "u", Run: runs[0], Changed: news}
			runs = runs[1:]
			return at, nil
		}
		k := &kubelet{
			host:  &fakeLogs{late: late, runs: map[uint64]string{2: stamp + "second\n", 3: stamp + "third\n"}},
			log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
			now:   time.Now,
			find:  func(context.Context, string, string, string) (target, error) { return look() },
			again: func(context.Context, types.UID, string) (target, error) { return look() },
		}
		w := httptest.NewRecorder()
		k.handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/containerLogs/default/p/c?follow=true", nil))
		if got := w.Body.String(); got != "second\nthird\n" {
			t.Errorf("run %d begins late: %q", late, got)
		}
	}
}

func statusText(code string) string {
	n := 0
	for _, d := range code {
		n = n*10 + int(d-'0')
	}
	return http.StatusText(n)
}

func TestLogOptions(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	o, err := parseLogOptions(url.Values{"tailLines": {"5"}, "sinceSeconds": {"60"}, "follow": {"true"}, "stream": {"Stdout"}}, now)
	if err != nil || o.query.Tail != 5 || !o.query.Follow || o.stream != "stdout" || !o.query.Since.Equal(now.Add(-time.Minute)) || o.limit != -1 {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = parseLogOptions(nil, now); err != nil || o.query.Tail != -1 {
		t.Errorf("%+v, %v", o, err)
	}
}
