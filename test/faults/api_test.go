package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
)

// object is what the model stores.
type object interface {
	metav1.Object
	runtime.Object
}

// kinds are the resources of the model. Events are taken and not kept.
var kinds = map[string]func() object{
	"pods":                func() object { return &corev1.Pod{} },
	"nodes":               func() object { return &corev1.Node{} },
	"events":              func() object { return &corev1.Event{} },
	"daemonsets":          func() object { return &appsv1.DaemonSet{} },
	"controllerrevisions": func() object { return &appsv1.ControllerRevision{} },
	"runtimeclasses":      func() object { return &nodev1.RuntimeClass{} },
	"leases":              func() object { return &coordinationv1.Lease{} },
	// There are none.
	"poddisruptionbudgets": func() object { return &policyv1.PodDisruptionBudget{} },
}

// api is a model of an API server and its store: versions, preconditions,
// conflicts, lists, watches with bookmarks and an end of what is remembered.
type api struct {
	mu      sync.Mutex
	random  *rand.Rand
	version int64
	names   int
	store   map[string]map[string]object
	// history are all changes after version forgotten.
	history   []change
	forgotten int64
	watches   map[*watch]bool
	// past are earlier states, of the last moments.
	past []state
	// out: the server is not there.
	out bool
	// plain: the server knows no lists by watch, as old ones.
	plain bool
	// skew is how far the clocks of the server and of the agents are ahead of the
	// controllers'.
	skew time.Duration
	// seen is called after each change, with the lock held.
	seen func(c change)
	// arrived is called before each request is answered, with the lock held.
	arrived func(q request)
}

type change struct {
	version  int64
	resource string
	kind     string // ADDED, MODIFIED, DELETED
	object   object
}

// state is what lists may be answered with that ask for any version.
type state struct {
	at      time.Time
	version int64
	store   map[string]map[string]object
}

// behind is how far behind such an answer may be.
const behind = 5 * time.Second

func newAPI(random *rand.Rand) *api {
	a := &api{random: random, version: 100, forgotten: 100, store: map[string]map[string]object{}, watches: map[*watch]bool{}}
	for resource := range kinds {
		a.store[resource] = map[string]object{}
	}
	return a
}

func (a *api) now() time.Time { return time.Now().Add(a.skew) }

func keyOf(o object) string { return o.GetNamespace() + "/" + o.GetName() }

// commit makes a change; the lock is held.
func (a *api) commit(resource, kind string, o object) {
	before := state{time.Now(), a.version, map[string]map[string]object{}}
	for resource, all := range a.store {
		before.store[resource] = maps.Clone(all)
	}
	a.past = append(a.past, before)
	for time.Since(a.past[0].at) > behind {
		a.past = a.past[1:]
	}
	a.version++
	o.SetResourceVersion(strconv.FormatInt(a.version, 10))
	if kind == "DELETED" {
		delete(a.store[resource], keyOf(o))
	} else {
		a.store[resource][keyOf(o)] = o
	}
	c := change{a.version, resource, kind, o}
	a.history = append(a.history, c)
	for w := range a.watches {
		w.offer(c)
	}
	if a.seen != nil {
		a.seen(c)
	}
}

// forget drops what watches could resume from.
func (a *api) forget() { a.history, a.forgotten = nil, a.version }

// request is what a call asks for.
type request struct {
	method, resource, namespace, name, sub string
	http                                   *http.Request
	body                                   []byte
	from                                   string
}

func parse(r *http.Request) (request, error) {
	q := request{method: r.Method, http: r}
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return q, err
		}
		q.body = body
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] == "api" {
		parts = parts[2:]
	} else {
		parts = parts[3:]
	}
	if parts[0] == "namespaces" {
		q.namespace, parts = parts[1], parts[2:]
	}
	parts = append(parts, "", "")
	q.resource, q.name, q.sub = parts[0], parts[1], parts[2]
	if kinds[q.resource] == nil {
		return q, fmt.Errorf("the model has no %s", r.URL.Path)
	}
	return q, nil
}

// writes says whether a request changes what DaemonSets are about.
func (q request) writes() bool {
	return q.method != http.MethodGet && q.resource != "events" && q.resource != "leases"
}

// serve answers a request.
func (a *api) serve(q request) *http.Response {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.arrived != nil {
		a.arrived(q)
	}
	resource := schema.GroupResource{Resource: q.resource}
	if q.method == http.MethodGet && q.name == "" {
		if q.http.URL.Query().Get("watch") != "" {
			return a.watch(q)
		}
		return a.list(q)
	}
	if q.method == http.MethodPost {
		return a.create(q)
	}
	if q.resource == "events" {
		return reply(http.StatusOK, q.body)
	}
	o := a.store[q.resource][q.namespace+"/"+q.name]
	if o == nil {
		return refuse(apierrors.NewNotFound(resource, q.name))
	}
	switch q.method {
	case http.MethodGet:
		return encode(http.StatusOK, o)
	case http.MethodDelete:
		return a.delete(q, o)
	}
	changed, err := a.changed(q, o)
	if err != nil {
		return refuse(apierrors.NewBadRequest(err.Error()))
	}
	version := changed.GetResourceVersion()
	if changed.GetUID() != o.GetUID() || version != "" && version != o.GetResourceVersion() {
		return refuse(apierrors.NewConflict(resource, q.name, errors.New("it has been modified")))
	}
	a.settle(q, o, changed)
	a.commit(q.resource, "MODIFIED", changed)
	return encode(http.StatusOK, changed)
}

// changed is the object as a PUT or a PATCH wants it.
func (a *api) changed(q request, o object) (object, error) {
	want := kinds[q.resource]()
	if q.method == http.MethodPut {
		return want, json.Unmarshal(q.body, want)
	}
	before, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var after []byte
	switch t := types.PatchType(q.http.Header.Get("Content-Type")); t {
	case types.StrategicMergePatchType:
		after, err = strategicpatch.StrategicMergePatch(before, q.body, want)
	case types.MergePatchType:
		after, err = merge(before, q.body)
	default:
		return nil, fmt.Errorf("the model has no %s", t)
	}
	if err != nil {
		return nil, err
	}
	return want, json.Unmarshal(after, want)
}

// merge is RFC 7386.
func merge(before, patch []byte) ([]byte, error) {
	var b, p map[string]any
	if err := errors.Join(json.Unmarshal(before, &b), json.Unmarshal(patch, &p)); err != nil {
		return nil, err
	}
	var into func(b, p map[string]any)
	into = func(b, p map[string]any) {
		for key, value := range p {
			sub, isMap := value.(map[string]any)
			old, wasMap := b[key].(map[string]any)
			switch {
			case value == nil:
				delete(b, key)
			case isMap && wasMap:
				into(old, sub)
			default:
				b[key] = value
			}
		}
	}
	into(b, p)
	return json.Marshal(b)
}

// settle keeps status and the rest apart, and counts generations.
func (a *api) settle(q request, o, changed object) {
	ds, is := changed.(*appsv1.DaemonSet)
	if !is {
		return
	}
	old := o.(*appsv1.DaemonSet)
	if q.sub == "status" {
		status := ds.Status
		old.DeepCopyInto(ds)
		ds.Status = status
		return
	}
	ds.Status = *old.Status.DeepCopy()
	x, _ := json.Marshal(old.Spec)
	if y, _ := json.Marshal(ds.Spec); !bytes.Equal(x, y) {
		ds.Generation++
	}
}

func (a *api) create(q request) *http.Response {
	o := kinds[q.resource]()
	if err := json.Unmarshal(q.body, o); err != nil {
		return refuse(apierrors.NewBadRequest(err.Error()))
	}
	if q.resource == "events" {
		return reply(http.StatusCreated, q.body)
	}
	o.SetNamespace(q.namespace)
	if a.store[q.resource][keyOf(o)] != nil && o.GetName() != "" {
		return refuse(apierrors.NewAlreadyExists(schema.GroupResource{Resource: q.resource}, o.GetName()))
	}
	a.add(q.resource, o)
	return encode(http.StatusCreated, o)
}

// add stores a new object; the lock is held.
func (a *api) add(resource string, o object) {
	a.names++
	if o.GetName() == "" {
		o.SetName(fmt.Sprintf("%sg%d", o.GetGenerateName(), a.names))
	}
	o.SetUID(types.UID(fmt.Sprintf("uid-%d", a.names)))
	o.SetCreationTimestamp(metav1.NewTime(a.now().Truncate(time.Second)))
	switch o := o.(type) {
	case *corev1.Pod:
		o.Status.Phase = corev1.PodPending
	case *appsv1.DaemonSet:
		o.Generation = 1
	}
	a.commit(resource, "ADDED", o)
}

// delete removes an object, a bound pod only once its agent has ended it.
func (a *api) delete(q request, o object) *http.Response {
	var options metav1.DeleteOptions
	if len(q.body) > 0 {
		if err := json.Unmarshal(q.body, &options); err != nil {
			return refuse(apierrors.NewBadRequest(err.Error()))
		}
	}
	if p := options.Preconditions; p != nil && p.UID != nil && *p.UID != o.GetUID() {
		return refuse(apierrors.NewConflict(schema.GroupResource{Resource: q.resource}, q.name, errors.New("the UID is another")))
	}
	changed := o.DeepCopyObject().(object)
	atOnce := options.GracePeriodSeconds != nil && *options.GracePeriodSeconds == 0
	// One that has ended needs no agent to end it (pod/strategy.go, CheckGracefulDelete).
	if pod, is := changed.(*corev1.Pod); is && pod.Spec.NodeName != "" && pod.Status.Phase != corev1.PodFailed && !atOnce {
		if pod.DeletionTimestamp == nil {
			now := metav1.NewTime(a.now().Truncate(time.Second))
			pod.DeletionTimestamp = &now
			a.commit(q.resource, "MODIFIED", pod)
		}
		return encode(http.StatusOK, changed)
	}
	a.commit(q.resource, "DELETED", changed)
	return encode(http.StatusOK, changed)
}

func (a *api) list(q request) *http.Response {
	var items []json.RawMessage
	version, store := a.version, a.store
	if len(a.past) > 0 && q.http.URL.Query().Get("resourceVersion") == "0" {
		version, store = a.past[0].version, a.past[0].store
	}
	for _, key := range slices.Sorted(maps.Keys(store[q.resource])) {
		if o := store[q.resource][key]; q.namespace == "" || o.GetNamespace() == q.namespace {
			items = append(items, content(o))
		}
	}
	gvk := kindOf(kinds[q.resource]())
	body, err := json.Marshal(map[string]any{
		"apiVersion": gvk.GroupVersion().String(), "kind": gvk.Kind + "List",
		"metadata": map[string]any{"resourceVersion": strconv.FormatInt(version, 10)}, "items": items,
	})
	if err != nil {
		panic(err)
	}
	return reply(http.StatusOK, body)
}

// watch begins a watch, where asked for with all that there is.
func (a *api) watch(q request) *http.Response {
	query := q.http.URL.Query()
	initial := query.Get("sendInitialEvents") == "true"
	if initial && a.plain {
		return refuse(apierrors.NewInvalid(schema.GroupKind{Kind: "ListOptions"}, "", nil))
	}
	from, _ := strconv.ParseInt(query.Get("resourceVersion"), 10, 64)
	if !initial && from < a.forgotten {
		return refuse(apierrors.NewResourceExpired("too old resource version"))
	}
	w := &watch{resource: q.resource, namespace: q.namespace, more: make(chan struct{}, 1), over: make(chan struct{}), done: q.http.Context().Done()}
	if initial {
		for _, key := range slices.Sorted(maps.Keys(a.store[q.resource])) {
			w.offer(change{resource: q.resource, kind: "ADDED", object: a.store[q.resource][key]})
		}
		w.bookmark(a.version, true)
	} else {
		for _, c := range a.history {
			if c.version > from {
				w.offer(c)
			}
		}
	}
	a.watches[w] = true
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: w, Request: q.http}
}

// cut ends watches, those for which which says so.
func (a *api) cut(which func(*watch) bool) {
	for w := range a.watches {
		if which(w) {
			delete(a.watches, w)
			w.end()
		}
	}
}

// watch is the body of a watch's answer.
type watch struct {
	resource, namespace string
	done                <-chan struct{}
	more                chan struct{}
	over                chan struct{}
	once                sync.Once

	mu sync.Mutex
	// text is what is not read yet; nothing is before the time of held.
	text []byte
	held time.Time
}

func (w *watch) end() { w.once.Do(func() { close(w.over) }) }

func (w *watch) Close() error {
	w.end()
	return nil
}

func (w *watch) offer(c change) {
	if c.resource != w.resource || w.namespace != "" && c.object.GetNamespace() != w.namespace {
		return
	}
	w.put(c.kind, content(c.object))
}

func (w *watch) bookmark(version int64, end bool) {
	o := kinds[w.resource]()
	o.SetResourceVersion(strconv.FormatInt(version, 10))
	if end {
		o.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	w.put("BOOKMARK", content(o))
}

func (w *watch) put(kind string, content json.RawMessage) {
	line, err := json.Marshal(map[string]any{"type": kind, "object": content})
	if err != nil {
		panic(err)
	}
	w.mu.Lock()
	w.text = append(append(w.text, line...), '\n')
	w.mu.Unlock()
	w.wake()
}

func (w *watch) wake() {
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// hold keeps news back for a while, and those that come meanwhile.
func (w *watch) hold(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = time.Now().Add(d)
	time.AfterFunc(d, w.wake)
}

func (w *watch) Read(p []byte) (int, error) {
	for {
		w.mu.Lock()
		if len(w.text) > 0 && !time.Now().Before(w.held) {
			n := copy(p, w.text)
			w.text = w.text[n:]
			w.mu.Unlock()
			return n, nil
		}
		w.mu.Unlock()
		select {
		case <-w.more:
		case <-w.over:
			return 0, io.EOF
		case <-w.done:
			return 0, io.ErrUnexpectedEOF
		}
	}
}

func kindOf(o object) schema.GroupVersionKind {
	all, _, err := scheme.Scheme.ObjectKinds(o)
	if err != nil {
		panic(err)
	}
	return all[0]
}

func content(o object) json.RawMessage {
	o = o.DeepCopyObject().(object)
	o.GetObjectKind().SetGroupVersionKind(kindOf(o))
	text, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return text
}

func encode(status int, o object) *http.Response { return reply(status, content(o)) }

func refuse(err *apierrors.StatusError) *http.Response {
	status := err.ErrStatus
	status.Kind, status.APIVersion = "Status", "v1"
	body, e := json.Marshal(status)
	if e != nil {
		panic(e)
	}
	return reply(int(status.Code), body)
}

func reply(status int, body []byte) *http.Response {
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}
}
