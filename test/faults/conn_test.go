package faults

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// conn is one controller's way to the API server, with all that goes wrong on
// it.
type conn struct {
	api *api

	mu     sync.Mutex
	random *rand.Rand
	// storm is the part of requests that fail, in any of many ways.
	storm float64
	// slow is how long a request may take.
	slow time.Duration
	// cut off: nothing arrives, and nothing is answered, until the caller gives up.
	cutOff bool
	// leaseLost: what is asked about Leases does not arrive, all else does.
	leaseLost bool
	// identity is who speaks, in the election.
	identity string
	// left writes are made until the process dies: in place of the one after
	// them, or, with late, after that one and before its answer. Negative: never.
	left int
	late bool
	die  context.CancelFunc
	dead bool
	// writes that were made.
	writes int
}

func (c *conn) config() *rest.Config {
	return &rest.Config{Host: "http://api", Transport: c, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
}

var (
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset by peer")
)

// fate is what happens to one request.
type fate struct {
	before, after time.Duration
	// unheard: the server never gets it. lost: it is carried out and nobody
	// hears of it.
	unheard, lost bool
	// stuck: nothing comes of it until the caller gives up.
	stuck      bool
	answer     *apierrors.StatusError // in place of the server's
	dies, late bool
}

func (c *conn) fate(q request) fate {
	c.mu.Lock()
	defer c.mu.Unlock()
	var f fate
	if c.slow > 0 {
		f.before = time.Duration(c.random.Int64N(int64(c.slow)))
		f.after = time.Duration(c.random.Int64N(int64(c.slow)))
	}
	if c.random.Float64() < c.storm {
		what := schema.GroupResource{Resource: q.resource}
		switch c.random.IntN(8) {
		case 0:
			f.unheard = true
		case 1:
			f.lost = true
		case 2:
			f.unheard, f.answer = true, apierrors.NewInternalError(errors.New("etcd is away"))
		case 3:
			f.lost, f.answer = true, apierrors.NewInternalError(errors.New("etcd said nothing"))
		case 4:
			f.unheard, f.answer = true, apierrors.NewTooManyRequests("too many", 0)
		case 5:
			f.unheard, f.answer = true, apierrors.NewTooManyRequests("too many", 1+c.random.IntN(3))
		case 6:
			f.unheard, f.answer = true, apierrors.NewConflict(what, q.name, errors.New("for no reason"))
		case 7:
			f.lost, f.answer = true, apierrors.NewTimeoutError("it took too long", 0)
		}
	}
	f.stuck = c.leaseLost && q.resource == "leases" && q.namespace == metav1.NamespaceSystem
	if q.writes() {
		c.writes++
		if c.left == 0 {
			f.dies, f.late = true, c.late
		}
		c.left--
	}
	return f
}

// RoundTrip carries a request over.
func (c *conn) RoundTrip(r *http.Request) (*http.Response, error) {
	q, err := parse(r)
	if err != nil {
		return nil, err
	}
	q.from = c.identity
	f := c.fate(q)
	if os.Getenv("LEGION_FAULTS_LOG") != "" {
		println(time.Now().Format("04:05.000"), r.Method, r.URL.String())
	}
	if err := c.wait(r.Context(), f.before); err != nil {
		return nil, err
	}
	if f.stuck {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if f.dies && !f.late {
		c.kill()
		return nil, errReset
	}
	var answer *http.Response
	if !f.unheard {
		answer = c.api.serve(q)
	}
	if f.dies {
		c.kill()
		return nil, errReset
	}
	if err := c.wait(r.Context(), f.after); err != nil {
		return nil, err
	}
	switch {
	case f.answer != nil:
		answer = refuse(f.answer)
		if d := f.answer.ErrStatus.Details; d != nil && d.RetryAfterSeconds > 0 {
			answer.Header.Set("Retry-After", "1")
		}
	case f.unheard || f.lost:
		return nil, errReset
	}
	answer.Request = r
	return answer, nil
}

// wait lets time pass on the wire, and more while nothing gets through.
func (c *conn) wait(ctx context.Context, d time.Duration) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
		}
		c.mu.Lock()
		cutOff, dead := c.cutOff, c.dead
		c.mu.Unlock()
		c.api.mu.Lock()
		out := c.api.out
		c.api.mu.Unlock()
		switch {
		case dead || out:
			return errRefused
		case !cutOff:
			return nil
		}
		d = 100 * time.Millisecond
	}
}

func (c *conn) kill() {
	c.mu.Lock()
	c.dead = true
	c.mu.Unlock()
	c.die()
}

func (c *conn) set(f func(*conn)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c)
}
