package apiserver

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

func TestDirect(t *testing.T) {
	insides := make(chan Inside, 1)
	f := startWith(t, Config{
		Dir: t.TempDir(), Listen: "127.0.0.1",
		Controllers: func(ctx context.Context, inside Inside) error {
			insides <- inside
			<-ctx.Done()
			return nil
		},
	})
	f.awaitAccount(t, "default")
	inside := <-insides
	direct := inside.Client
	t.Run("same as the API", func(t *testing.T) { testSame(t, f, direct) })
	t.Run("refused as by the API", func(t *testing.T) { testRefused(t, f, direct) })
	t.Run("leases", func(t *testing.T) { testLeaseFields(t, f) })
	t.Run("one spec", func(t *testing.T) { testOneSpec(t, direct) })
	t.Run("watch", func(t *testing.T) { testDirectWatch(t, f, direct) })
	t.Run("status patches", func(t *testing.T) { testStatusPatches(t, f) })
	t.Run("renewals", func(t *testing.T) { testRenewals(t, f, direct) })
	t.Run("briefly", func(t *testing.T) { testBriefly(t, f) })
	t.Run("ended", func(t *testing.T) { testEnded(t, f) })
	t.Run("namesakes", func(t *testing.T) { testNamesakes(t, f, direct) })
	t.Run("fenced", func(t *testing.T) { testFenced(t, inside) })
}

// What takes the direct way is refused in the moment in which it must be.
func testFenced(t *testing.T, inside Inside) {
	var refused error
	begun, ended := 0, 0
	fenced := inside.Fenced(inside.Client, func(ctx context.Context) (context.Context, func(), error) {
		begun++
		return ctx, func() { ended++ }, refused
	})
	pods := fenced.CoreV1().Pods("default")
	made, err := pods.Create(t.Context(), samples()["plain"], metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	refused = errors.New("not now")
	if _, err := pods.Create(t.Context(), samples()["plain"], metav1.CreateOptions{}); !errors.Is(err, refused) {
		t.Errorf("a pod is made: %v", err)
	}
	if err := pods.Delete(t.Context(), made.Name, metav1.DeleteOptions{}); !errors.Is(err, refused) {
		t.Errorf("a pod is deleted: %v", err)
	}
	if _, err := pods.Get(t.Context(), made.Name, metav1.GetOptions{}); err != nil {
		t.Errorf("a pod cannot be read: %v", err)
	}
	refused = nil
	if err := pods.Delete(t.Context(), made.Name, metav1.DeleteOptions{}); err != nil {
		t.Errorf("a pod cannot be deleted: %v", err)
	}
	if begun != 4 || ended != 2 {
		t.Errorf("%d writes were begun, want 4, and %d ended, want 2", begun, ended)
	}
}

// samples are pods that exercise defaults and each admission plugin.
func samples() map[string]*corev1.Pod {
	plain := func() *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				GenerateName: "same-", Namespace: "default", Labels: map[string]string{"app": "same"},
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "d", UID: "1-2-3", Controller: new(bool)}},
			},
			Spec: corev1.PodSpec{
				NodeName:   "nowhere",
				Containers: []corev1.Container{{Name: "c", Image: "example.org/c", Ports: []corev1.ContainerPort{{ContainerPort: 80}}}},
			},
		}
	}
	critical := plain()
	critical.Namespace, critical.Spec.PriorityClassName = "kube-system", "system-node-critical"
	host := plain()
	class := HostRuntimeClass
	host.Spec.RuntimeClassName, host.Spec.HostNetwork = &class, true
	host.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{}}}
	host.Spec.Containers[0].LivenessProbe.TCPSocket.Port.IntVal = 80
	host.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	return map[string]*corev1.Pod{"plain": plain(), "critical": critical, "host": host}
}

func testSame(t *testing.T, f *fleet, direct kubernetes.Interface) {
	f.awaitAccount(t, "kube-system")
	owners := map[string]types.UID{}
	for what, pod := range samples() {
		// Its owner is there: upstream's garbage collector would remove it.
		if owners[pod.Namespace] == "" {
			owners[pod.Namespace] = owner(t, f, pod.Namespace)
		}
		pod.OwnerReferences[0].APIVersion, pod.OwnerReferences[0].Kind = "v1", "ConfigMap"
		pod.OwnerReferences[0].UID = owners[pod.Namespace]
		before := pod.DeepCopy()
		viaAPI, err := f.admin.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatalf("%s, by the API: %v", what, err)
		}
		inside, err := direct.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatalf("%s, inside: %v", what, err)
		}
		if diff := cmp.Diff(before, pod); diff != "" {
			t.Errorf("%s: the caller's pod was changed:\n%s", what, diff)
		}
		read, err := f.admin.CoreV1().Pods(pod.Namespace).Get(t.Context(), inside.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(read, inside); diff != "" {
			t.Errorf("%s: what was returned is not what was stored:\n%s", what, diff)
		}
		if diff := cmp.Diff(anonymous(viaAPI), anonymous(read)); diff != "" {
			t.Errorf("%s: made by the API and made inside differ:\n%s", what, diff)
		}
		for _, made := range []*corev1.Pod{viaAPI, inside} {
			testGone(t, f, direct, made)
		}
	}
}

// owner makes what owns the samples of a namespace.
func owner(t *testing.T, f *fleet, namespace string) types.UID {
	t.Helper()
	made, err := f.admin.CoreV1().ConfigMaps(namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "d"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made.UID
}

// testOneSpec makes two pods of one controller, whose specs are to be the same,
// and one of another.
func testOneSpec(t *testing.T, direct kubernetes.Interface) {
	controls := true
	create := func(owner types.UID, own ...corev1.Volume) corev1.PodSpec {
		pod := samples()["plain"]
		pod.OwnerReferences[0].UID, pod.OwnerReferences[0].Controller, pod.Spec.Volumes = owner, &controls, own
		made, err := direct.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made.Spec
	}
	first := create("one")
	if diff := cmp.Diff(first, create("one")); diff != "" {
		t.Errorf("two pods of one controller differ:\n%s", diff)
	}
	if len(first.Volumes) != 1 || first.Containers[0].VolumeMounts[0].Name != first.Volumes[0].Name {
		t.Errorf("volumes %v, mounts %v", first.Volumes, first.Containers[0].VolumeMounts)
	}
	if other := create("two"); other.Volumes[0].Name == first.Volumes[0].Name {
		t.Errorf("the pods of two controllers have a volume of the name %s", first.Volumes[0].Name)
	}
	// A volume of the template keeps its name, and the one that is added has another.
	own := corev1.Volume{Name: first.Volumes[0].Name + "x", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	if with := create("one", own); with.Volumes[0].Name != own.Name {
		t.Errorf("the template's volume %s became %v", own.Name, with.Volumes)
	}
}

// anonymous takes from a pod what no two pods have in common, and the managed
// fields, which only the API keeps.
func anonymous(pod *corev1.Pod) *corev1.Pod {
	out := pod.DeepCopy()
	out.Name, out.UID, out.ResourceVersion, out.ManagedFields = "", "", "", nil
	out.CreationTimestamp = metav1.Time{}
	for i := range out.Spec.Volumes {
		out.Spec.Volumes[i].Name = ""
	}
	for i := range out.Spec.Containers {
		for j := range out.Spec.Containers[i].VolumeMounts {
			out.Spec.Containers[i].VolumeMounts[j].Name = ""
		}
	}
	return out
}

// testGone deletes a pod inside: with grace, as for another UID, and at last
// for good.
func testGone(t *testing.T, f *fleet, direct kubernetes.Interface, pod *corev1.Pod) {
	api := direct.CoreV1().Pods(pod.Namespace)
	other := types.UID("other")
	err := api.Delete(t.Context(), pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &other}})
	if !apierrors.IsConflict(err) {
		t.Errorf("the deletion of another pod of that name: %v", err)
	}
	if err := api.Delete(t.Context(), pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}}); err != nil {
		t.Errorf("a deletion: %v", err)
	}
	read, err := f.admin.CoreV1().Pods(pod.Namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil || read.DeletionTimestamp == nil || read.DeletionGracePeriodSeconds == nil || *read.DeletionGracePeriodSeconds != 30 {
		t.Errorf("a pod being deleted: %+v, %v", read, err)
	}
	now := int64(0)
	if err := api.Delete(t.Context(), pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
		t.Errorf("a deletion without grace: %v", err)
	}
	if err := api.Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the deletion of a pod that is gone: %v", err)
	}
}

func testRefused(t *testing.T, f *fleet, direct kubernetes.Interface) {
	invalid := samples()["plain"]
	invalid.Spec.Containers[0].Name = "Not A Name"
	account := samples()["plain"]
	account.Spec.ServiceAccountName = "nobody"
	class := samples()["plain"]
	class.Spec.PriorityClassName = "no-such-class"
	nowhere := samples()["plain"]
	nowhere.Namespace = "no-such-namespace"
	for what, pod := range map[string]*corev1.Pod{
		"an invalid name": invalid, "no such account": account, "no such priority": class, "no such namespace": nowhere,
	} {
		_, viaAPI := f.admin.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		_, inside := direct.CoreV1().Pods(pod.Namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		if viaAPI == nil || inside == nil || apierrors.ReasonForError(viaAPI) != apierrors.ReasonForError(inside) {
			t.Errorf("%s: the API says %v, inside: %v", what, viaAPI, inside)
		}
	}
}

func testDirectWatch(t *testing.T, f *fleet, direct kubernetes.Interface) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	w, err := direct.CoreV1().Pods("").Watch(ctx, metav1.ListOptions{LabelSelector: "watched"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	pod := samples()["plain"]
	pod.Labels["watched"] = "yes"
	made, err := f.admin.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	event := <-w.ResultChan()
	if diff := cmp.Diff(made, event.Object); event.Type != watch.Added || diff != "" {
		t.Errorf("the event of a pod made: %s %s", event.Type, diff)
	}
	second := int64(1)
	short, err := direct.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{TimeoutSeconds: &second})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for range short.ResultChan() {
	}
	if took := time.Since(began); took > limit/2 {
		t.Errorf("a watch of a second ended after %s", took)
	}
}
