package controller

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// eventStore keeps events as a server does.
type eventStore struct {
	events         map[string]*corev1.Event
	created, count int
	fail           error
}

func (s *eventStore) CreateEvent(_ context.Context, e *corev1.Event) (*corev1.Event, error) {
	if s.fail != nil {
		return nil, s.fail
	}
	s.created++
	s.events[e.Name] = e
	return e, nil
}

func (s *eventStore) CountEvent(_ context.Context, e *corev1.Event) error {
	if s.events[e.Name] == nil {
		return apierrors.NewNotFound(schema.GroupResource{Resource: "events"}, e.Name)
	}
	s.count++
	s.events[e.Name] = e
	return nil
}

func telling(t *testing.T, do func(*teller, *eventStore, *appsv1.DaemonSet)) {
	synctest.Test(t, func(t *testing.T) {
		store := &eventStore{events: map[string]*corev1.Event{}}
		teller := newTeller(store, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			teller.run(ctx)
			close(done)
		}()
		ds := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "n", UID: "u"}}
		do(teller, store, ds)
		cancel()
		<-done
	})
}

func TestEventsOfOneCauseAreCounted(t *testing.T) {
	telling(t, func(teller *teller, store *eventStore, ds *appsv1.DaemonSet) {
		voice := teller.as("daemonset-controller")
		for i := range 5000 {
			voice.Eventf(ds, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: d-%d", i)
			time.Sleep(time.Millisecond)
		}
		voice.Event(ds, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: d-0")
		time.Sleep(2 * maxRepeat)
		synctest.Wait()
		if len(store.events) != 2 || store.created != 2 || store.count > 4 {
			t.Errorf("%d events, %d made, counted %d times; want two, and a few", len(store.events), store.created, store.count)
		}
		for _, e := range store.events {
			if e.Reason == "SuccessfulCreate" && (e.Count != 5000 || e.Message != "Created pod: d-4999" || e.LastTimestamp.Sub(e.FirstTimestamp.Time) < 4*time.Second) {
				t.Errorf("the event of 5,000 pods: count %d, %q, %s to %s", e.Count, e.Message, e.FirstTimestamp, e.LastTimestamp)
			}
			if e.InvolvedObject.Kind != "DaemonSet" || e.InvolvedObject.UID != "u" || e.Source.Component != "daemonset-controller" {
				t.Errorf("the event is about %+v from %+v", e.InvolvedObject, e.Source)
			}
		}
	})
}

func TestWarningsAreToldApart(t *testing.T) {
	telling(t, func(teller *teller, store *eventStore, ds *appsv1.DaemonSet) {
		voice := teller.as("c")
		for i := range 100 {
			voice.Eventf(ds, corev1.EventTypeWarning, "FailedPlacement", "node %d", i)
			voice.Event(ds, corev1.EventTypeWarning, "FailedCreate", "quota")
		}
		time.Sleep(2 * maxRepeat)
		synctest.Wait()
		counts := map[string]int32{}
		for _, e := range store.events {
			counts[e.Reason] += e.Count
		}
		if len(store.events) != apart+1+1 || counts["FailedPlacement"] != 100 || counts["FailedCreate"] != 100 {
			t.Errorf("%d events with counts %v; want %d for the nodes and one", len(store.events), counts, apart+1)
		}
	})
}

func TestEventsThatTheServerHasDroppedAreMadeAgain(t *testing.T) {
	telling(t, func(teller *teller, store *eventStore, ds *appsv1.DaemonSet) {
		voice := teller.as("c")
		voice.Event(ds, corev1.EventTypeNormal, "R", "one")
		synctest.Wait()
		clear(store.events)
		voice.Event(ds, corev1.EventTypeNormal, "R", "two")
		time.Sleep(2 * maxRepeat)
		synctest.Wait()
		if store.created != 2 || len(store.events) != 1 {
			t.Errorf("made %d times, %d there", store.created, len(store.events))
		}
	})
}

func TestCausesAreForgotten(t *testing.T) {
	telling(t, func(teller *teller, store *eventStore, ds *appsv1.DaemonSet) {
		voice := teller.as("c")
		for i := range 20 {
			voice.Event(ds, corev1.EventTypeWarning, "W", fmt.Sprint(i))
		}
		voice.Event(ds, corev1.EventTypeNormal, "R", "one")
		time.Sleep(2*rememberFor + 2*maxRepeat)
		synctest.Wait()
		if len(teller.causes)+len(teller.texts) != 0 {
			t.Errorf("an hour later %d causes and %d texts are remembered", len(teller.causes), len(teller.texts))
		}
		store.fail = apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "", nil)
		voice.Event(ds, corev1.EventTypeNormal, "R", "two")
		synctest.Wait()
		if len(teller.causes) != 0 {
			t.Error("what could not be told is remembered as told")
		}
	})
}
