package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/tools/reference"
	"k8s.io/client-go/util/workqueue"
)

// How often an event is written whose cause goes on, and how long a cause is
// remembered after that: less than the server keeps events.
const (
	firstRepeat = time.Second
	maxRepeat   = time.Minute
	rememberFor = 30 * time.Minute
	// apart is how many messages of one reason about one object are told apart.
	apart = 8
)

// eventWriter is what teller needs of the API.
type eventWriter interface {
	CreateEvent(ctx context.Context, e *corev1.Event) (*corev1.Event, error)
	CountEvent(ctx context.Context, e *corev1.Event) error
}

// eventsAPI writes events by a client.
type eventsAPI struct{ client kubernetes.Interface }

func (a eventsAPI) CreateEvent(ctx context.Context, e *corev1.Event) (*corev1.Event, error) {
	return a.client.CoreV1().Events(e.Namespace).Create(ctx, e, metav1.CreateOptions{})
}

func (a eventsAPI) CountEvent(ctx context.Context, e *corev1.Event) error {
	patch, err := json.Marshal(map[string]any{"count": e.Count, "message": e.Message, "lastTimestamp": e.LastTimestamp})
	if err != nil {
		return err
	}
	_, err = a.client.CoreV1().Events(e.Namespace).Patch(ctx, e.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// teller writes events: one for each cause, with a count. The first is written
// at once; those that follow are counted, and the count written after a
// second, then after two, four … up to a minute. A thousand pods made are one
// event and a few writes.
type teller struct {
	api   eventWriter
	log   *slog.Logger
	queue workqueue.TypedDelayingInterface[cause]

	mu     sync.Mutex
	causes map[cause]*told
	// named is the number in the last event's name.
	named int64
	// texts counts the messages told apart of a reason, in a cause without one.
	texts map[cause]map[string]bool
}

// cause is what makes two events the same. Normal events, of which each names
// a pod, are the same if their reason is; warnings if their message is, unless
// there are too many of them.
type cause struct {
	object                  types.UID
	component, kind, reason string
	text                    string
}

// told is one event and what of it is not written yet.
type told struct {
	event   *corev1.Event
	written bool
	unsaid  int32
	wait    time.Duration
	last    time.Time
}

func newTeller(api eventWriter, log *slog.Logger) *teller {
	return &teller{
		api: api, log: log, queue: workqueue.NewTypedDelayingQueue[cause](),
		causes: map[cause]*told{}, texts: map[cause]map[string]bool{},
	}
}

// as returns a recorder that speaks for a component.
func (t *teller) as(component string) record.EventRecorder { return voice{t, component} }

type voice struct {
	teller    *teller
	component string
}

func (v voice) Event(object runtime.Object, kind, reason, message string) {
	v.teller.tell(object, nil, v.component, kind, reason, message)
}

func (v voice) Eventf(object runtime.Object, kind, reason, format string, args ...any) {
	v.Event(object, kind, reason, fmt.Sprintf(format, args...))
}

func (v voice) AnnotatedEventf(object runtime.Object, annotations map[string]string, kind, reason, format string, args ...any) {
	v.teller.tell(object, annotations, v.component, kind, reason, fmt.Sprintf(format, args...))
}

func (t *teller) tell(object runtime.Object, annotations map[string]string, component, kind, reason, message string) {
	ref, err := reference.GetReference(scheme.Scheme, object)
	if err != nil {
		t.log.Warn("cannot tell what an event is about", "reason", reason, "message", message, "error", err)
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.causeOf(ref.UID, component, kind, reason, message)
	s := t.causes[c]
	if s == nil {
		t.named = max(t.named+1, now.UnixNano())
		s = &told{event: newEvent(ref, annotations, component, kind, reason, now)}
		s.event.Name = fmt.Sprintf("%s.%x", ref.Name, t.named)
		t.causes[c] = s
		t.queue.Add(c)
	} else if s.unsaid == 0 {
		s.wait = min(max(2*s.wait, firstRepeat), maxRepeat)
		t.queue.AddAfter(c, s.wait)
	}
	s.unsaid++
	s.last = now
	s.event.Count++
	s.event.Message = message
	s.event.LastTimestamp = metav1.NewTime(now)
}

func (t *teller) causeOf(object types.UID, component, kind, reason, message string) cause {
	c := cause{object: object, component: component, kind: kind, reason: reason}
	if kind == corev1.EventTypeNormal {
		return c
	}
	texts := t.texts[c]
	if texts == nil {
		texts = map[string]bool{}
		t.texts[c] = texts
	}
	if !texts[message] && len(texts) >= apart {
		return c
	}
	texts[message] = true
	c.text = message
	return c
}

func newEvent(ref *corev1.ObjectReference, annotations map[string]string, component, kind, reason string, now time.Time) *corev1.Event {
	namespace := ref.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Annotations: annotations},
		InvolvedObject: *ref, Type: kind, Reason: reason,
		Source: corev1.EventSource{Component: component}, ReportingController: component,
		FirstTimestamp: metav1.NewTime(now),
	}
}

// run writes until ctx ends.
func (t *teller) run(ctx context.Context) {
	defer context.AfterFunc(ctx, t.queue.ShutDown)()
	for {
		c, quit := t.queue.Get()
		if quit {
			return
		}
		t.write(ctx, c)
		t.queue.Done(c)
	}
}

func (t *teller) write(ctx context.Context, c cause) {
	t.mu.Lock()
	s := t.causes[c]
	if s == nil {
		t.mu.Unlock()
		return
	}
	if s.unsaid == 0 {
		if idle := time.Since(s.last); idle < rememberFor {
			t.queue.AddAfter(c, rememberFor-idle)
		} else {
			t.forget(c)
		}
		t.mu.Unlock()
		return
	}
	event, written := s.event.DeepCopy(), s.written
	s.unsaid = 0
	t.mu.Unlock()

	err := t.send(ctx, event, written)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		s.written = true
		if s.unsaid == 0 {
			t.queue.AddAfter(c, rememberFor)
		}
		return
	}
	// What cannot be told, about what is being deleted say, is left untold.
	if ctx.Err() == nil {
		t.log.Debug("cannot write an event", "event", event.Name, "reason", event.Reason, "message", event.Message, "error", err)
	}
	t.forget(c)
}

func (t *teller) send(ctx context.Context, event *corev1.Event, written bool) error {
	if written {
		err := t.api.CountEvent(ctx, event)
		if !apierrors.IsNotFound(err) {
			return err
		}
		// The server keeps events for a while only.
	}
	_, err := t.api.CreateEvent(ctx, event)
	return err
}

// forget drops a cause; the caller holds the lock.
func (t *teller) forget(c cause) {
	delete(t.causes, c)
	text := c.text
	c.text = ""
	if delete(t.texts[c], text); len(t.texts[c]) == 0 {
		delete(t.texts, c)
	}
}
