package apiserver

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/client-go/kubernetes"
	api "k8s.io/kubernetes/pkg/apis/core"
)

// testStatusPatches patches statuses in all ways; the spec stays what it was,
// and of each kind of patch becomes what becomes of it with upstream's.
func testStatusPatches(t *testing.T, f *fleet) {
	pods := f.admin.CoreV1().Pods("default")
	pod := samples()["host"]
	pod.OwnerReferences = nil
	made, err := pods.Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patch := func(kind types.PatchType, text string) (*corev1.Pod, error) {
		return pods.Patch(t.Context(), made.Name, kind, []byte(text), metav1.PatchOptions{}, "status")
	}
	for _, step := range []struct {
		kind types.PatchType
		text string
	}{
		{types.StrategicMergePatchType, `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"False"},{"type":"Initialized","status":"True"}],"podIPs":[{"ip":"127.0.0.1"}]}}`},
		{types.StrategicMergePatchType, `{"status":{"conditions":[{"type":"Ready","status":"True"}],"$setElementOrder/conditions":[{"type":"Initialized"},{"type":"Ready"}]}}`},
		{types.StrategicMergePatchType, `{"status":{"message":"m"},"spec":{"nodeName":"other","containers":[{"name":"c","image":"example.org/other"}]}}`},
		{types.JSONPatchType, `[{"op":"test","path":"/spec/containers/0/name","value":"` + made.Spec.Containers[0].Name + `"},{"op":"add","path":"/status/reason","value":"r"}]`},
		{types.MergePatchType, `{"status":{"hostIP":"127.0.0.1"}}`},
	} {
		after, err := patch(step.kind, step.text)
		if err != nil {
			t.Fatalf("%s %s: %v", step.kind, step.text, err)
		}
		if diff := cmp.Diff(made.Spec, after.Spec); diff != "" {
			t.Errorf("%s %s changes the spec:\n%s", step.kind, step.text, diff)
		}
	}
	got, err := pods.Get(t.Context(), made.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := corev1.PodStatus{
		Phase: corev1.PodRunning, Message: "m", Reason: "r", HostIP: "127.0.0.1", QOSClass: made.Status.QOSClass,
		PodIP: "127.0.0.1", PodIPs: []corev1.PodIP{{IP: "127.0.0.1"}},
		Conditions: []corev1.PodCondition{{Type: "Initialized", Status: "True"}, {Type: "Ready", Status: "True"}},
	}
	if diff := cmp.Diff(want, got.Status); diff != "" {
		t.Errorf("the status is not what the patches say:\n%s", diff)
	}
	if diff := cmp.Diff(made.Spec, got.Spec); diff != "" {
		t.Errorf("the spec in the store is another:\n%s", diff)
	}
	if _, err := patch(types.StrategicMergePatchType, `{"metadata":{"uid":"another"},"status":{"message":"n"}}`); !apierrors.IsInvalid(err) {
		t.Errorf("a patch for another pod of the name: %v", err)
	}
	if _, err := patch(types.StrategicMergePatchType, `{"status":{"phase":1}}`); err == nil {
		t.Error("a wrong patch is taken")
	}
}

// What makes the new object does without the lists of the spec, knows the node,
// and its object has the spec of before.
func TestSpecAside(t *testing.T) {
	old := &api.Pod{Spec: api.PodSpec{NodeName: "n", Containers: []api.Container{{Name: "c"}}, Volumes: []api.Volume{{Name: "v"}}}}
	var seen api.PodSpec
	remake := func(_ context.Context, _, was runtime.Object) (runtime.Object, error) {
		seen = was.(*api.Pod).Spec
		return &api.Pod{Status: api.PodStatus{Message: "m"}}, nil
	}
	obj, err := specAside{rest.DefaultUpdatedObjectInfo(nil, remake)}.UpdatedObject(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(api.PodSpec{NodeName: "n"}, seen); diff != "" {
		t.Errorf("made from another spec:\n%s", diff)
	}
	if diff := cmp.Diff(&api.Pod{Spec: old.Spec, Status: api.PodStatus{Message: "m"}}, obj); diff != "" {
		t.Errorf("becomes another pod:\n%s", diff)
	}
	if len(old.Spec.Containers) != 1 || len(old.Spec.Volumes) != 1 {
		t.Errorf("the pod that was is changed: %+v", old.Spec)
	}
}

// testNamesakes deletes pods that follow each other under one name, faster than
// the watch cache learns of them: each time the one that there is.
func testNamesakes(t *testing.T, f *fleet, direct kubernetes.Interface) {
	pod := samples()["plain"]
	pod.GenerateName, pod.Name, pod.OwnerReferences = "", "namesake", nil
	var last types.UID
	for i := range 60 {
		made, err := f.admin.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if last != "" {
			err := direct.CoreV1().Pods("default").Delete(t.Context(), made.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &last}})
			if !apierrors.IsConflict(err) {
				t.Fatalf("round %d: the pod of before can be deleted: %v", i, err)
			}
		}
		last = made.UID
		client := []kubernetes.Interface{f.admin, direct}[i%2]
		options := *metav1.NewDeleteOptions(0)
		if i%3 > 0 {
			// With time, and by its UID, before it goes at once.
			first := metav1.DeleteOptions{}
			if i%3 == 1 {
				first.Preconditions = &metav1.Preconditions{UID: &made.UID}
				options.Preconditions = first.Preconditions
			}
			if err := client.CoreV1().Pods("default").Delete(t.Context(), made.Name, first); err != nil {
				t.Fatalf("round %d: %v", i, err)
			}
			marked, err := f.admin.CoreV1().Pods("default").Get(t.Context(), made.Name, metav1.GetOptions{})
			if err != nil || marked.DeletionTimestamp == nil {
				t.Fatalf("round %d: is not being deleted: %v", i, err)
			}
		}
		if err := client.CoreV1().Pods("default").Delete(t.Context(), made.Name, options); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if _, err := f.admin.CoreV1().Pods("default").Get(t.Context(), made.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Fatalf("round %d: the pod is still there: %v", i, err)
		}
	}
}

// testEnded has pods end as their nodes say: who watches is told once, and a pod
// that somebody keeps by a finalizer stays.
func testEnded(t *testing.T, f *fleet) {
	pods := f.admin.CoreV1().Pods("default")
	pod := samples()["host"]
	pod.GenerateName, pod.Name, pod.OwnerReferences = "", "ending", nil
	made, err := pods.Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	news, err := pods.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=ending", ResourceVersion: made.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer news.Stop()
	ends := *metav1.NewDeleteOptions(0)
	ends.Preconditions = &metav1.Preconditions{UID: &made.UID}
	for _, step := range []struct {
		what string
		do   func() error
		want watch.EventType
	}{
		{"a finalizer", func() error {
			_, err := pods.Patch(t.Context(), made.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":["example.org/kept"]}}`), metav1.PatchOptions{})
			return err
		}, watch.Modified},
		{"a deletion", func() error { return pods.Delete(t.Context(), made.Name, metav1.DeleteOptions{}) }, watch.Modified},
		{"the end of a pod with a finalizer", func() error { return pods.Delete(t.Context(), made.Name, ends) }, watch.Modified},
		{"no finalizer any more", func() error {
			_, err := pods.Patch(t.Context(), made.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
			return err
		}, watch.Deleted},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		if e := <-news.ResultChan(); e.Type != step.want {
			t.Fatalf("%s is told as %v", step.what, e)
		}
	}
	if made, err = pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ends.Preconditions = &metav1.Preconditions{UID: &made.UID}
	for _, step := range []struct {
		options metav1.DeleteOptions
		want    []watch.EventType
	}{{metav1.DeleteOptions{}, []watch.EventType{watch.Added, watch.Modified}}, {ends, []watch.EventType{watch.Deleted}}} {
		if err := pods.Delete(t.Context(), made.Name, step.options); err != nil {
			t.Fatal(err)
		}
		for _, want := range step.want {
			if e := <-news.ResultChan(); e.Type != want {
				t.Fatalf("told as %v, want %s", e, want)
			}
		}
	}
	if err := pods.Delete(t.Context(), made.Name, ends); !apierrors.IsNotFound(err) {
		t.Errorf("the end of a pod that is gone: %v", err)
	}
}

// A pod that has ended is taken out as it was seen, if nothing keeps it.
func TestEndsAsSeen(t *testing.T) {
	uid := types.UID("1")
	options := metav1.NewDeleteOptions(0)
	options.Preconditions = &metav1.Preconditions{UID: &uid}
	for _, c := range []struct {
		what string
		seen metav1.ObjectMeta
		ends bool
	}{
		{"being deleted", metav1.ObjectMeta{Name: "p", UID: uid, ResourceVersion: "7", DeletionTimestamp: &metav1.Time{}}, true},
		{"not being deleted", metav1.ObjectMeta{Name: "p", UID: uid, ResourceVersion: "7"}, false},
		{"kept", metav1.ObjectMeta{Name: "p", UID: uid, DeletionTimestamp: &metav1.Time{}, Finalizers: []string{"f"}}, false},
		{"another", metav1.ObjectMeta{Name: "p", UID: "2", DeletionTimestamp: &metav1.Time{}}, false},
	} {
		store := &staleStore{cached: &api.Pod{ObjectMeta: c.seen}, stored: &api.Pod{ObjectMeta: c.seen}}
		pods := podStorage{store, store, newPodParts()}
		ctx := context.WithValue(t.Context(), deletion{}, &deleting{options: options, ended: true})
		err := pods.Get(ctx, "key", storage.GetOptions{}, &api.Pod{})
		if (err == nil) != c.ends {
			t.Errorf("%s: %v", c.what, err)
		}
		if err != nil {
			continue
		}
		if err := pods.Delete(ctx, "key", &api.Pod{}, &storage.Preconditions{UID: &uid}, nil, nil, storage.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if len(store.removed) != 1 || *store.removed[0].UID != uid || *store.removed[0].ResourceVersion != "7" {
			t.Errorf("%s: taken out by %+v", c.what, store.removed)
		}
	}
}

// What an informer does to its objects happens to those alone.
func TestInformersChangeTheirOwn(t *testing.T) {
	shared := &api.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: map[string]string{"a": "b"}},
		Status: api.PodStatus{
			ContainerStatuses: []api.ContainerStatus{{Name: "c", Image: "i", ContainerID: "id", State: api.ContainerState{Waiting: &api.ContainerStateWaiting{Reason: "r", Message: "m"}}}},
			HostIP:            "127.0.0.1", HostIPs: []api.HostIP{{IP: "127.0.0.1"}},
			Conditions: []api.PodCondition{{Type: api.PodReady, Status: api.ConditionFalse}},
		},
	}
	before := shared.DeepCopy()
	e, ok := versioned(func() runtime.Object { return &corev1.Pod{} }, copied)(watch.Event{Type: watch.Added, Object: shared})
	if !ok {
		t.Fatal("no event")
	}
	slim, err := newPool().slim(e.Object)
	if err != nil {
		t.Fatal(err)
	}
	if s := slim.(*corev1.Pod).Status.ContainerStatuses; len(s) != 1 || s[0].ContainerID != "" {
		t.Errorf("the informer's pod is not slim: %+v", s)
	}
	if diff := cmp.Diff(before, shared); diff != "" {
		t.Errorf("the pod that others have is changed:\n%s", diff)
	}
}

// A pod of which several are told is found by its version, and is another's
// copy where it is not known.
func TestOriginal(t *testing.T) {
	parts := newPodParts()
	attributes := parts.attributes(func(runtime.Object) (labels.Set, fields.Set, error) { return nil, nil, nil })
	pod := &api.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "1", ResourceVersion: "7"}}
	if _, _, err := attributes(pod); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		uid  types.UID
		rv   string
		same bool
	}{{"known", "1", "7", true}, {"another version", "1", "8", false}, {"another pod", "2", "7", false}} {
		wrapped := &cacheable{Pod: api.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: c.uid, ResourceVersion: c.rv}}}
		if got := parts.original(wrapped); (got == runtime.Object(pod)) != c.same {
			t.Errorf("%s: %p, known is %p", c.what, got, pod)
		}
	}
}

// cacheable is an object that a watch cache wraps for several watchers.
type cacheable struct{ api.Pod }

func (c *cacheable) CacheEncode(runtime.Identifier, func(runtime.Object, io.Writer) error, io.Writer) error {
	return errors.New("not asked for")
}

func (c *cacheable) GetObject() runtime.Object { return c.Pod.DeepCopy() }

// staleStore is a store whose watch cache has another pod than it has itself.
type staleStore struct {
	storage.Interface
	cached, stored *api.Pod
	// known are the pods with which updates began.
	known []runtime.Object
	// removed are the preconditions with which pods were taken out.
	removed []storage.Preconditions
}

func (s *staleStore) Delete(
	_ context.Context, _ string, _ runtime.Object, p *storage.Preconditions, _ storage.ValidateObjectFunc, _ runtime.Object, _ storage.DeleteOptions,
) error {
	s.removed = append(s.removed, *p)
	return nil
}

func (s *staleStore) Get(_ context.Context, _ string, options storage.GetOptions, into runtime.Object) error {
	if options.ResourceVersion == "0" {
		*into.(*api.Pod) = *s.cached
		return nil
	}
	*into.(*api.Pod) = *s.stored
	return nil
}

func (s *staleStore) GuaranteedUpdate(
	_ context.Context, _ string, _ runtime.Object, _ bool, _ *storage.Preconditions, _ storage.UpdateFunc, known runtime.Object,
) error {
	s.known = append(s.known, known)
	return nil
}

// A deletion begins with what the watch cache has only if that is the pod that
// is meant; one that is to be gone at once begins with what the store has.
func TestDeletionsOfNamesakes(t *testing.T) {
	was := &api.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "1", DeletionTimestamp: &metav1.Time{}}}
	is := &api.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "2"}}
	at := func(uid types.UID, grace int64) context.Context {
		options := metav1.NewDeleteOptions(grace)
		if uid != "" {
			options.Preconditions = &metav1.Preconditions{UID: &uid}
		}
		return context.WithValue(t.Context(), deletion{}, &deleting{options: options})
	}
	for _, c := range []struct {
		what   string
		ctx    context.Context
		cached *api.Pod
		want   types.UID
	}{
		{"any pod, stale", at("", 30), was, "2"},
		{"the new one, stale", at("2", 30), was, "2"},
		{"the new one", at("2", 30), is, "2"},
		{"the old one, stale", at("1", 30), was, "1"}, // the write says that it is gone
		{"no deletion", t.Context(), was, "2"},
	} {
		store := &staleStore{cached: c.cached, stored: is}
		got := &api.Pod{}
		if err := (podStorage{store, store, newPodParts()}).Get(c.ctx, "key", storage.GetOptions{}, got); err != nil || got.UID != c.want {
			t.Errorf("%s: read %q (%v), want %q", c.what, got.UID, err, c.want)
		}
	}
	for _, c := range []struct {
		what  string
		ctx   context.Context
		known bool
	}{{"with time", at("", 30), true}, {"at once", at("2", 0), false}, {"no deletion", t.Context(), false}} {
		store := &staleStore{cached: is, stored: is}
		if err := (podStorage{store, store, newPodParts()}).GuaranteedUpdate(c.ctx, "key", &api.Pod{}, false, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
		if len(store.known) != 1 || (store.known[0] != nil) != c.known {
			t.Errorf("%s: begins with %v", c.what, store.known)
		}
	}
}
