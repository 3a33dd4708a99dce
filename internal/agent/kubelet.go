package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/prefetch"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/vitals"
)

// containerHost is what serving logs and streams needs of legiond.
type containerHost interface {
	Logs(ctx context.Context, group string, q hostapi.LogQuery) (io.ReadCloser, error)
	// Exec closes the files.
	Exec(ctx context.Context, group string, r hostapi.ExecRequest, stdio [3]*os.File) (service.Exit, error)
	Attach(ctx context.Context, group string, r hostapi.AttachRequest) (*hostclient.Attached, error)
}

// target is a container that somebody asks for.
type target struct {
	UID types.UID
	// Run is the newest run, 0 if there was none yet; Before is the one before.
	Run, Before uint64
	// Runs: the newest run has not ended. Begins: its process is being started.
	Runs, Begins bool
	// Console is what its process reads from where one may attach to it.
	Console *service.Console
	// Waiting is why there is no run, where that is known.
	Waiting string
	// Changed is closed at the next news of the pod, Done when nothing of it
	// runs any more or will.
	Changed, Done <-chan struct{}
}

// kubelet answers what the API server asks of a node, as a kubelet does
// (pkg/kubelet/server/server.go).
type kubelet struct {
	host containerHost
	log  *slog.Logger
	// ip is the node's own address.
	ip string
	// find tells of a container, or of a pod if container is empty; the error is
	// for the person who asked.
	find func(ctx context.Context, namespace, pod, container string) (target, error)
	// again is find for a pod that was found before.
	again func(ctx context.Context, uid types.UID, container string) (target, error)
	// list gives the pods of this node.
	list func(ctx context.Context) []*v1.Pod
	// stats tells what the node and its containers use.
	stats func(ctx context.Context) (*statsapi.Summary, error)
	now   func() time.Time
	// images is nil where the node runs none; life is how long one is got for
	// that nobody waits for.
	images images
	life   context.Context
}

func (k *kubelet) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = io.WriteString(w, vitals.Text())
	})
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", k.containerLogs)
	pods := func(w http.ResponseWriter, r *http.Request) {
		list := v1.PodList{}
		list.APIVersion, list.Kind = "v1", "PodList"
		for _, pod := range k.list(r.Context()) {
			list.Items = append(list.Items, *pod)
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(list)
	}
	mux.HandleFunc("GET /pods", pods)
	mux.HandleFunc("GET /runningpods", pods)
	mux.HandleFunc("GET /runningpods/", pods)
	mux.HandleFunc("GET /stats/summary", k.serveSummary)
	mux.HandleFunc("GET /metrics/resource", k.serveResourceMetrics)
	mux.HandleFunc("POST /"+prefetch.Path, k.servePrefetch)
	// By GET too: browsers open WebSockets so.
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", k.serveExec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", k.serveAttach)
	mux.HandleFunc("/portForward/{namespace}/{pod}", k.servePortForward)
	return mux
}

// logOptions are the query of containerLogs.
type logOptions struct {
	query      hostapi.LogQuery
	timestamps bool
	stream     string
	limit      int64
}

func parseLogOptions(q url.Values, now time.Time) (logOptions, error) {
	o := logOptions{query: hostapi.LogQuery{Tail: -1}, limit: -1}
	var problems []error
	number := func(name string, least int64, set func(int64)) {
		if text := q.Get(name); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil || n < least {
				problems = append(problems, fmt.Errorf("%s=%q: must be a number of at least %d", name, text, least))
				return
			}
			set(n)
		}
	}
	flag := func(name string, to *bool) {
		if text := q.Get(name); text != "" {
			b, err := strconv.ParseBool(text)
			if err != nil {
				problems = append(problems, fmt.Errorf("%s=%q: must be true or false", name, text))
			}
			*to = b
		}
	}
	flag("follow", &o.query.Follow)
	flag("previous", &o.query.Previous)
	flag("timestamps", &o.timestamps)
	number("tailLines", 0, func(n int64) { o.query.Tail = int(n) })
	number("limitBytes", 1, func(n int64) { o.limit = n })
	number("sinceSeconds", 1, func(n int64) { o.query.Since = now.Add(-time.Duration(n) * time.Second) })
	if text := q.Get("sinceTime"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			problems = append(problems, fmt.Errorf("sinceTime=%q: must be a time as 2006-01-02T15:04:05Z", text))
		}
		o.query.Since = at
	}
	switch s := q.Get("stream"); s {
	case "", v1.LogStreamAll:
	case v1.LogStreamStdout, v1.LogStreamStderr:
		o.stream = strings.ToLower(s)
	default:
		problems = append(problems, fmt.Errorf("stream=%q: must be All, Stdout or Stderr", s))
	}
	return o, errors.Join(problems...)
}

func (k *kubelet) containerLogs(w http.ResponseWriter, r *http.Request) {
	options, err := parseLogOptions(r.URL.Query(), k.now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	container := r.PathValue("container")
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	target, err := k.find(ctx, r.PathValue("namespace"), r.PathValue("pod"), container)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	query := options.query
	query.Service, query.Run = container, target.Run
	pod := r.PathValue("pod")
	switch {
	case query.Previous && target.Before == 0:
		http.Error(w, fmt.Sprintf("previous terminated container %q in pod %q not found: it has not been restarted since this node's host knows it", container, pod), http.StatusBadRequest)
		return
	case query.Previous:
		query.Previous, query.Follow, query.Run = false, false, target.Before
	case target.Run == 0:
		http.Error(w, fmt.Sprintf("container %q in pod %q is waiting to start: %s", container, pod, target.Waiting), http.StatusBadRequest)
		return
	}
	var body io.ReadCloser
	if query.Follow {
		body, err = k.newer(ctx, &target, target.Run-1, query)
	} else {
		body, err = k.open(ctx, target.UID, query)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if body == nil {
		body = io.NopCloser(strings.NewReader("")) // it has written nothing
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	flush := func() { _ = http.NewResponseController(w).Flush() }
	flush()
	out := &logOutput{w: w, timestamps: options.timestamps, stream: options.stream, left: options.limit}
	for {
		err := out.copyFrom(body, flush)
		_ = body.Close()
		if err == nil && query.Follow && out.left != 0 {
			query.Tail, query.Since = -1, time.Time{}
			body, err = k.newer(ctx, &target, target.Run, query)
		}
		if err != nil && ctx.Err() == nil {
			k.log.Warn("a log was cut short", "pod", pod, "container", container, "error", err)
		}
		if err != nil || !query.Follow || out.left == 0 || body == nil {
			return
		}
	}
}

// open opens the log of a run; nil if there is none.
func (k *kubelet) open(ctx context.Context, uid types.UID, query hostapi.LogQuery) (io.ReadCloser, error) {
	body, err := k.host.Logs(ctx, podspec.GroupName(uid), query)
	var answer *hostapi.Error
	if errors.As(err, &answer) && answer.Code == "not-found" {
		return nil, nil
	}
	return body, err
}

// newer waits for a run after the last one and opens its log, which is there a
// moment after the run is told of; nil when there will be none.
func (k *kubelet) newer(ctx context.Context, t *target, last uint64, query hostapi.LogQuery) (io.ReadCloser, error) {
	for {
		if t.Run > last {
			query.Run = t.Run
			if body, err := k.open(ctx, t.UID, query); err != nil || body != nil {
				return body, err
			}
		}
		select {
		case <-t.Changed:
		case <-t.Done:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		var err error
		if *t, err = k.again(ctx, t.UID, query.Service); err != nil {
			return nil, err
		}
	}
}
