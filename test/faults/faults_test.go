package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"
)

func TestMain(m *testing.M) {
	if os.Getenv("LEGION_FAULTS_LOG") == "" {
		klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	}
	// The other handler waits by the clock of the machine.
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
	os.Exit(m.Run())
}

// logger says what the controllers say, where that is asked for.
func logger() *slog.Logger {
	if os.Getenv("LEGION_FAULTS_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.DiscardHandler)
}

// seeds runs a test with as many seeds as are asked for.
func seeds(t *testing.T, most int, f func(t *testing.T, seed uint64)) {
	t.Helper()
	first := uint64(1)
	if s := os.Getenv("LEGION_FAULTS_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, most = n, 1
	} else if s := os.Getenv("LEGION_FAULTS_SEEDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		most = n
	}
	for seed := first; seed < first+uint64(most) && !t.Failed(); seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, seed) })
		})
	}
}

// Requests fail in all ways: refused before they were carried out, or carried
// out and answered with an error, or with nothing.
func TestStorms(t *testing.T) {
	seeds(t, 20, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		c := w.connect()
		c.storm, c.slow = 0.4, time.Second
		w.process(c, "")
		w.settle(30 * time.Minute)
		w.count()
		w.update("d:2")
		time.Sleep(time.Duration(w.random.IntN(20)) * time.Second)
		w.update("d:3")
		w.settle(30 * time.Minute)
	})
}

// Names of new pods are taken by pods of others: that is no failure, and nothing
// waits for it.
func TestNamesAreTaken(t *testing.T) {
	seeds(t, 5, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		// The controller gives up after eight for one pod.
		const most = 7
		taken := 0
		w.arrived = func(q request) {
			switch {
			case q.resource == "events" && bytes.Contains(q.body, []byte("FailedCreate")):
				t.Errorf("told as a failure: %s", q.body)
			case q.method == http.MethodPost && q.resource == "pods" && taken < most && w.store["pods"]["default/"+nameIn(t, q)] == nil:
				taken++
				w.add("pods", &corev1.Pod{
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: nameIn(t, q)}, Spec: corev1.PodSpec{NodeName: "elsewhere"},
				})
			}
		}
		w.process(w.connect(), "")
		w.settle(10 * time.Minute)
		if taken != most {
			t.Errorf("%d names were taken", taken)
		}
	})
}

func nameIn(t *testing.T, q request) string {
	var pod corev1.Pod
	if err := json.Unmarshal(q.body, &pod); err != nil {
		t.Error(err)
	}
	return pod.Name
}

// Watches end, or keep their news back, or have nothing to resume from; lists
// are answered with a delay.
func TestWatchGaps(t *testing.T) {
	seeds(t, 15, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		c := w.connect()
		c.slow = 500 * time.Millisecond
		w.process(c, "")
		w.settle(10 * time.Minute)
		w.count()
		w.disturb("d:2", 5*time.Second, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			switch w.random.IntN(3) {
			case 0:
				w.cut(func(*watch) bool { return w.random.IntN(2) == 0 })
			case 1:
				w.forget()
				w.cut(func(*watch) bool { return true })
			case 2:
				for watch := range w.watches {
					if w.random.IntN(2) == 0 {
						watch.hold(time.Duration(w.random.IntN(20)) * time.Second)
					}
				}
			}
		})
		w.settle(10 * time.Minute)
	})
}

// The API server ends and starts again, in the middle of what it does.
func TestServerRestarts(t *testing.T) {
	seeds(t, 15, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		c := w.connect()
		c.slow = 300 * time.Millisecond
		w.process(c, "")
		w.settle(10 * time.Minute)
		w.count()
		w.disturb("d:2", 10*time.Second, func() {
			w.mu.Lock()
			w.out = true
			w.forget()
			w.cut(func(*watch) bool { return true })
			w.mu.Unlock()
			time.Sleep(time.Duration(w.random.IntN(8000)) * time.Millisecond)
			w.mu.Lock()
			w.out = false
			w.mu.Unlock()
		})
		w.settle(10 * time.Minute)
	})
}

// The controller dies before any write, and after it; the next one knows only
// what the API says.
func TestDiesBetweenAnyTwoWrites(t *testing.T) {
	seeds(t, 4, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		deaths, late := 0, seed%2 == 0
		c := w.connect()
		for n := 0; ; n++ {
			c.left, c.late = n%5, late
			ended := w.process(c, "")
			// Alive, it finishes; the next round makes it work again.
			for end := time.Now().Add(10 * time.Minute); !w.calm() && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				select {
				case <-ended:
					deaths++
					c = w.connect()
					c.left, c.late = w.random.IntN(4), late
					ended = w.process(c, "")
				default:
				}
			}
			if !w.calm() {
				w.settle(0)
			}
			if n == 4 {
				break
			}
			w.count()
			c.kill()
			<-ended
			c = w.connect()
			w.update(fmt.Sprintf("d:%d", n+2))
		}
		if deaths < 10 {
			t.Errorf("seed %d: it died %d times only", seed, deaths)
		}
	})
}

// Two controllers; the one that works is cut off in the middle of an update,
// the other takes over, again and again.
func TestTwoControllers(t *testing.T) {
	seeds(t, 10, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		both := []*conn{w.connect(), w.connect()}
		for i, c := range both {
			c.slow = 400 * time.Millisecond
			w.process(c, fmt.Sprintf("controller-%d", i))
		}
		w.settle(20 * time.Minute)
		w.count()
		for n := 2; n < 5; n++ {
			w.update(fmt.Sprintf("d:%d", n))
			time.Sleep(time.Duration(w.random.IntN(4000)) * time.Millisecond)
			// Both are cut off and come back, one after the other.
			for _, c := range both {
				c.set(func(c *conn) { c.cutOff = true })
				time.Sleep(time.Duration(5+w.random.IntN(40)) * time.Second)
				c.set(func(c *conn) { c.cutOff = false })
				time.Sleep(time.Duration(w.random.IntN(10)) * time.Second)
			}
			w.settle(20 * time.Minute)
		}
	})
}

// The clocks of the API server and of the agents step, by hours, against the
// controller's.
func TestClockSteps(t *testing.T) {
	seeds(t, 10, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		w.soon()
		w.process(w.connect(), "")
		w.settle(10 * time.Minute)
		w.count()
		w.disturb("d:2", 5*time.Second, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.skew = time.Duration(w.random.IntN(7200)-3600) * time.Second
		})
		w.settle(10 * time.Minute)
	})
}

// All of it at once.
func TestEverything(t *testing.T) {
	seeds(t, 20, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed)
		w.soon()
		both := []*conn{w.connect(), w.connect()}
		ended := make([]<-chan struct{}, len(both))
		for i := range both {
			ended[i] = w.process(both[i], fmt.Sprintf("controller-%d", i))
		}
		w.settle(20 * time.Minute)
		w.count()
		started := len(both)
		w.disturb("d:2", 6*time.Second, func() {
			i := w.random.IntN(len(both))
			c := both[i]
			switch w.random.IntN(6) {
			case 0:
				w.mu.Lock()
				w.cut(func(*watch) bool { return w.random.IntN(2) == 0 })
				w.mu.Unlock()
			case 1:
				storm := float64(w.random.IntN(5)) / 10
				c.set(func(c *conn) { c.storm, c.slow = storm, time.Second })
			case 2:
				cutOff := w.random.IntN(3) == 0
				c.set(func(c *conn) { c.cutOff = cutOff })
			case 3:
				w.mu.Lock()
				w.skew = time.Duration(w.random.IntN(7200)-3600) * time.Second
				w.mu.Unlock()
			case 4:
				left, late := w.random.IntN(3), w.random.IntN(2) == 0
				c.set(func(c *conn) { c.left, c.late = left, late })
			case 5:
				w.mu.Lock()
				for watch := range w.watches {
					watch.hold(time.Duration(w.random.IntN(10)) * time.Second)
				}
				w.mu.Unlock()
			}
			for i := range both {
				select {
				case <-ended[i]:
					both[i] = w.connect()
					ended[i] = w.process(both[i], fmt.Sprintf("controller-%d", started))
					started++
				default:
				}
			}
		})
		for i, c := range both {
			select {
			case <-ended[i]:
				both[i] = w.connect()
				w.process(both[i], fmt.Sprintf("controller-%d", started))
				started++
			default:
				c.set(func(c *conn) { c.storm, c.cutOff, c.left = 0, false, -1 })
			}
		}
		w.settle(30 * time.Minute)
	})
}
