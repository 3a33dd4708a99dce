package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

// stage is a host and a server on one page, with what was asked of them.
type stage struct {
	t    *testing.T
	ctx  context.Context
	p    *pods
	mu   sync.Mutex
	log  []string
	pods map[types.UID]*v1.Pod
	rv   int
	// tell gives the pods' loop news of the object watched last.
	tell func(*podspec.Object)
	// full is what writing volumes ends with, tokens what it gives.
	full   error
	left   []types.UID
	tokens tokens
	// usage is how much directories take.
	usage map[string]int64
	// refuse is what the host says to a Put, fail what the server says, and
	// deafTo what it says to events.
	refuse, fail, deafTo error
}

func play(t *testing.T) *stage {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	s := &stage{t: t, ctx: ctx, pods: map[types.UID]*v1.Pod{}}
	s.p = newPods(podspec.Node{Name: "n1", IP: "10.0.0.7", Root: true}, s, s, s, s, slog.New(slog.NewTextHandler(io.Discard, nil)))
	done := make(chan struct{})
	go func() { defer close(done); s.p.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

func (s *stage) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, fmt.Sprintf(format, args...))
}

// expect waits until all is quiet and compares what was asked since.
func (s *stage) expect(want ...string) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := strings.Join(s.log, "\n"); got != strings.Join(want, "\n") {
		s.t.Errorf("asked:\n%s\nwant:\n%s", got, strings.Join(want, "\n"))
	}
	s.log = nil
}

// expectBoth is expect of requests for different pods, which go out side by
// side and in no order.
func (s *stage) expectBoth(want ...string) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	slices.Sort(s.log)
	s.mu.Unlock()
	slices.Sort(want)
	s.expect(want...)
}

func (s *stage) Put(_ context.Context, g service.Group) error {
	s.note("put %s boot=%v", g.Name, g.Boot)
	return s.refuse
}

func (s *stage) Start(_ context.Context, name string) error {
	s.note("start %s", name)
	return nil
}

func (s *stage) Stop(_ context.Context, name string, grace time.Duration) error {
	s.note("stop %s within %s", name, grace)
	return nil
}

func (s *stage) Delete(_ context.Context, name string, grace time.Duration) error {
	s.note("delete %s within %s", name, grace)
	return nil
}

func (s *stage) PatchPodStatus(_ context.Context, _, name string, patch []byte) (*v1.Pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return nil, s.fail
	}
	for _, pod := range s.pods {
		if pod.Name != name {
			continue
		}
		old, _ := json.Marshal(pod)
		text, err := strategicpatch.StrategicMergePatch(old, patch, v1.Pod{})
		if err != nil {
			s.t.Errorf("patch %s: %v", patch, err)
			return nil, err
		}
		next := &v1.Pod{}
		if err := json.Unmarshal(text, next); err != nil {
			s.t.Error(err)
		}
		s.rv++
		next.ResourceVersion = fmt.Sprint(s.rv)
		s.pods[pod.UID] = next
		c := next.Status.ContainerStatuses[0]
		state := "waiting"
		switch {
		case c.State.Running != nil:
			state = "running"
		case c.State.Terminated != nil:
			state = "terminated " + c.State.Terminated.Reason
		case c.State.Waiting != nil:
			state = c.State.Waiting.Reason
		}
		s.log = append(s.log, fmt.Sprintf("status %s %s %s ready=%v restarts=%d", name, next.Status.Phase, state, c.Ready, c.RestartCount))
		return next.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name)
}

func (s *stage) DeletePod(_ context.Context, _, name string, uid types.UID) error {
	s.note("remove %s %s", name, uid)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, uid)
	return nil
}

func (s *stage) CreateEvent(_ context.Context, e *v1.Event) error {
	s.mu.Lock()
	fail := s.deafTo
	s.mu.Unlock()
	if fail != nil {
		return fail
	}
	s.note("event %s %s", e.InvolvedObject.Name, e.Reason)
	return nil
}

func (s *stage) WatchObject(ctx context.Context, namespace string, ref podspec.Ref, told func(*podspec.Object)) {
	s.note("watch %s %s/%s", ref.Kind, namespace, ref.Name)
	s.mu.Lock()
	s.tell = told
	s.mu.Unlock()
	<-ctx.Done()
	s.note("unwatch %s %s/%s", ref.Kind, namespace, ref.Name)
}

func (s *stage) Write(_ context.Context, pod *v1.Pod, volumes []podspec.Volume, _ tokens) (tokens, error) {
	for _, v := range volumes {
		s.note("write %s/%s %s", pod.Name, v.Name, v.Files["K"].Data)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full != nil {
		return nil, s.full
	}
	return s.tokens, nil
}

func (s *stage) Remove(uid types.UID) error {
	if strings.HasPrefix(string(uid), "u-v") {
		s.note("clear %s", uid)
	}
	return nil
}

func (s *stage) Usage(_ context.Context, dirs []string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := int64(0)
	for _, dir := range dirs {
		sum += s.usage[dir]
	}
	return sum, nil
}

func (s *stage) Left() []types.UID { return s.left }

// add puts a pod on the server; change edits it first.
func (s *stage) add(name string, change func(*v1.Pod)) *v1.Pod {
	class := podspec.HostRuntime
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = name, "default", types.UID("u-"+name)
	pod.Spec = v1.PodSpec{
		NodeName: "n1", RuntimeClassName: &class, RestartPolicy: v1.RestartPolicyAlways,
		Containers: []v1.Container{{Name: "c", Command: []string{"/bin/daemon"}}},
	}
	if change != nil {
		change(pod)
	}
	s.mu.Lock()
	s.rv++
	pod.ResourceVersion = fmt.Sprint(s.rv)
	s.pods[pod.UID] = pod
	s.mu.Unlock()
	return pod.DeepCopy()
}

func (s *stage) listed() {
	s.mu.Lock()
	var list []*v1.Pod
	for _, pod := range s.pods {
		list = append(list, pod.DeepCopy())
	}
	s.mu.Unlock()
	sink{s.ctx, s.p}.Listed(list)
}

// edit changes a pod on the server and tells of it.
func (s *stage) edit(uid types.UID, change func(*v1.Pod)) {
	s.mu.Lock()
	pod := s.pods[uid].DeepCopy()
	change(pod)
	s.rv++
	pod.ResourceVersion = fmt.Sprint(s.rv)
	s.pods[uid] = pod
	s.mu.Unlock()
	sink{s.ctx, s.p}.Changed(pod.DeepCopy())
}

func (s *stage) host(name string, st service.Status) {
	st.Name = "c"
	s.p.HostEvent(s.ctx, hostapi.Event{Type: hostapi.Changed, Name: name, Group: &hostapi.Group{
		Spec:   service.Group{Name: name, Boot: true, Grace: 7 * time.Second},
		Status: service.GroupStatus{Name: name, Services: []service.Status{st}},
	}})
}

func (s *stage) synced() { s.p.HostEvent(s.ctx, hostapi.Event{Type: hostapi.Synced}) }

func (s *stage) removed(name string) {
	s.p.HostEvent(s.ctx, hostapi.Event{Type: hostapi.Removed, Name: name})
}

func running(run uint64) service.Status {
	return service.Status{State: service.Running, Ready: true, Started: true, Restarts: int(run - 1), Main: &service.Run{Number: run, Started: time.Now()}}
}

func TestPodLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.synced()
		s.listed()
		s.expect()
		pod := s.add("a", nil)
		sink{s.ctx, s.p}.Changed(pod)
		s.expect("put pod-u-a boot=true")
		s.host("pod-u-a", running(1))
		s.expect("status a Running running ready=true restarts=0")
		s.host("pod-u-a", running(1))
		s.expect()
		s.host("pod-u-a", running(2))
		s.expect("status a Running running ready=true restarts=1")

		grace := int64(3)
		s.edit("u-a", func(p *v1.Pod) {
			p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &metav1.Time{Time: time.Now()}, &grace
		})
		s.expect("delete pod-u-a within 3s")
		grace = 1
		s.edit("u-a", func(p *v1.Pod) { p.DeletionGracePeriodSeconds = &grace })
		s.expect("delete pod-u-a within 1s")
		done := running(2)
		done.State, done.Ready, done.Main.Exit = service.Dead, false, &service.Exit{At: time.Now()}
		s.host("pod-u-a", done)
		s.removed("pod-u-a")
		s.expect("status a Succeeded terminated Completed ready=false restarts=1", "remove a u-a")
		sink{s.ctx, s.p}.Deleted(pod)
		s.expect()
		if n := len(s.p.records); n != 0 {
			t.Errorf("%d records stay", n)
		}
	})
}

// TestNothingIsStartedTwice: an agent that comes back finds the groups that
// run, keeps those of pods that live, and stops those of pods that are gone.
func TestNothingIsStartedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.add("a", nil)
		s.host("pod-u-a", running(1))
		s.host("pod-u-gone", running(1))
		s.host("cron.service", running(1))
		s.synced()
		s.expect() // the server is away: nothing is stopped on suspicion
		s.listed()
		s.expectBoth("delete pod-u-gone within 7s", "status a Running running ready=true restarts=0")
		// legiond goes and comes back; so does the server.
		s.p.HostLost(s.ctx)
		s.expect()
		s.host("pod-u-a", running(1))
		s.synced()
		s.listed()
		s.expect()
		if r := s.p.records["u-gone"]; r != nil {
			t.Errorf("the group that is not in the list any more: %+v", r)
		}
	})
}

// TestLostGroupIsPutAgain: somebody removed a pod's group on the host.
func TestLostGroupIsPutAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.add("a", nil)
		s.listed()
		s.expect()
		s.synced()
		s.expect("put pod-u-a boot=true")
		s.host("pod-u-a", running(1))
		s.expect("status a Running running ready=true restarts=0")
		s.removed("pod-u-a")
		s.expectSet("put pod-u-a boot=true", "status a Running terminated ContainerStatusUnknown ready=false restarts=0")
		s.host("pod-u-a", running(9))
		s.expect("status a Running running ready=true restarts=8")
	})
}

func TestOnceAndDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.add("a", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyNever })
		s.synced()
		s.listed()
		s.expect("put pod-u-a boot=false")
		dead := service.Status{State: service.Dead}
		s.p.HostEvent(s.ctx, hostapi.Event{Type: hostapi.Changed, Name: "pod-u-a", Group: &hostapi.Group{
			Spec: service.Group{Name: "pod-u-a"}, Status: service.GroupStatus{Services: []service.Status{dead}},
		}})
		s.expect("start pod-u-a")
	})
}

// TestFinishedPodDoesNotRunAgainAtBoot: its group is told so.
func TestFinishedPodDoesNotRunAgainAtBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.add("a", func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyOnFailure })
		s.synced()
		s.listed()
		s.expect("put pod-u-a boot=true")
		done := running(1)
		done.State, done.Ready, done.Main.Exit = service.Dead, false, &service.Exit{At: time.Now()}
		s.host("pod-u-a", done)
		s.expectSet("put pod-u-a boot=false", "status a Succeeded terminated Completed ready=false restarts=0")
	})
}

// TestVolumes: they are written before the pod starts and again when an object
// changes or a token grows old; what gone pods left is cleared away.
func TestVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.left = []types.UID{"u-vold"}
		s.synced()
		s.listed()
		s.expect("clear u-vold")
		pod := s.add("v", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "s", VolumeSource: v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "key"}}}}
		})
		sink{s.ctx, s.p}.Changed(pod)
		s.expect("watch secret default/key")
		s.mu.Lock()
		s.full, s.tokens = errors.New("the disk is full"), tokens{"x": {"t", time.Now().Add(time.Hour)}}
		s.mu.Unlock()
		s.tell(&podspec.Object{Data: map[string][]byte{"K": []byte("1")}})
		s.expect("write v/s 1")
		s.mu.Lock()
		s.full = nil
		s.mu.Unlock()
		time.Sleep(250 * time.Millisecond)
		s.expect("write v/s 1", "put pod-u-v boot=true")
		s.host("pod-u-v", running(1))
		s.expect("status v Running running ready=true restarts=0")
		s.tell(&podspec.Object{Data: map[string][]byte{"K": []byte("2")}})
		s.expect("write v/s 2")
		s.mu.Lock()
		s.tokens = nil
		s.mu.Unlock()
		time.Sleep(time.Hour)
		s.expect("write v/s 2")
		sink{s.ctx, s.p}.Deleted(pod)
		s.expectSet("delete pod-u-v within 30s", "unwatch secret default/key")
		s.removed("pod-u-v")
		s.expect("clear u-v")
	})
}

// TestNothingIsDueInVain: what falls due while the loop is busy with other news
// is done after them.
func TestNothingIsDueInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.add("a", func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(60)) })
		s.synced()
		s.listed()
		s.host("pod-u-a", running(1))
		s.expectSet("put pod-u-a boot=true", "status a Running running ready=true restarts=0")
		s.p.post(s.ctx, func(context.Context, time.Time) { time.Sleep(2 * time.Minute) })
		time.Sleep(3 * time.Minute)
		s.expectBoth("stop pod-u-a within 30s", "put pod-u-a boot=false")

		sink{s.ctx, s.p}.Changed(s.add("b", nil))
		s.expect("put pod-u-b boot=true")
		s.p.post(s.ctx, func(context.Context, time.Time) { time.Sleep(2 * settle) })
		time.Sleep(3 * settle)
		s.expect("status b Pending ContainerCreating ready=false restarts=0")
	})
}

// TestLastState: how a pod has ended is told also where only the removal of its
// group tells of it.
func TestLastState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.add("a", nil)
		s.host("pod-u-a", running(1))
		s.synced()
		s.listed()
		s.expect("status a Running running ready=true restarts=0")
		s.edit("u-a", func(p *v1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} })
		s.expect("delete pod-u-a within 30s")
		last := running(1)
		last.Name, last.State, last.Ready, last.Main.Exit = "c", service.Dead, false, &service.Exit{At: time.Now(), Code: 3}
		s.p.HostEvent(s.ctx, hostapi.Event{Type: hostapi.Removed, Name: "pod-u-a", Group: &hostapi.Group{Status: service.GroupStatus{Services: []service.Status{last}}}})
		s.expect("status a Failed terminated Error ready=false restarts=0", "remove a u-a")
		if e := s.pods["u-a"]; e != nil && e.Status.ContainerStatuses[0].State.Terminated.ExitCode != 3 {
			t.Errorf("its last state: %+v", e.Status)
		}
	})
}

// expectSet is expect for requests that go two ways at once.
func (s *stage) expectSet(want ...string) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log) != len(want) {
		s.t.Errorf("asked: %q, want %q", s.log, want)
	}
	for _, w := range want {
		if !strings.Contains(strings.Join(s.log, "\n"), w) {
			s.t.Errorf("asked: %q, want %q", s.log, want)
		}
	}
	s.log = nil
}

func TestTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.synced()
		s.listed()
		sink{s.ctx, s.p}.Changed(s.add("image", func(p *v1.Pod) { p.Spec.RuntimeClassName = nil }))
		s.expect("status image Pending RuntimeHandlerNotFound ready=false restarts=0", "event image RuntimeHandlerNotFound")
		sink{s.ctx, s.p}.Changed(s.add("limits", func(p *v1.Pod) {
			p.Spec.Subdomain = "s"
		}))
		s.expect("put pod-u-limits boot=true")
		time.Sleep(2 * settle)
		s.expect("status limits Pending ContainerCreating ready=false restarts=0", "event limits NotHonoured")

		// What the server did not take is recorded later, once.
		s.mu.Lock()
		s.deafTo = errors.New("no route to the server")
		s.mu.Unlock()
		sink{s.ctx, s.p}.Changed(s.add("later", func(p *v1.Pod) { p.Spec.RuntimeClassName = nil }))
		s.expect("status later Pending RuntimeHandlerNotFound ready=false restarts=0")
		s.mu.Lock()
		s.deafTo = nil
		s.mu.Unlock()
		time.Sleep(time.Second)
		s.expect("event later RuntimeHandlerNotFound")

		s.mu.Lock()
		s.refuse = &hostapi.Error{Message: "cannot define the group: the disk is full", Hint: "free some space", Code: "failed"}
		s.mu.Unlock()
		sink{s.ctx, s.p}.Changed(s.add("full", nil))
		s.expect("put pod-u-full boot=true", "status full Pending CreateContainerError ready=false restarts=0")
		s.mu.Lock()
		s.refuse, s.fail = nil, errors.New("no route to the server")
		s.mu.Unlock()
		time.Sleep(time.Second)
		s.host("pod-u-full", running(1))
		s.expect("put pod-u-full boot=true")
		s.mu.Lock()
		s.fail = nil
		s.mu.Unlock()
		time.Sleep(time.Minute)
		s.expect("status full Running running ready=true restarts=0")
	})
}

// TestServerMarksAreSetRight: the server may mark pods of a node it cannot hear
// as not ready; the agent knows better.
func TestServerMarksAreSetRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.add("a", nil)
		s.host("pod-u-a", running(1))
		s.synced()
		s.listed()
		s.expect("status a Running running ready=true restarts=0")
		s.edit("u-a", func(p *v1.Pod) {
			for i := range p.Status.Conditions {
				if p.Status.Conditions[i].Type == v1.PodReady {
					p.Status.Conditions[i].Status = v1.ConditionFalse
				}
			}
		})
		s.expect("status a Running running ready=true restarts=0")
		s.edit("u-a", func(p *v1.Pod) { p.Labels = map[string]string{"a": "b"} })
		s.expect()
	})
}

// TestEnvironmentFromObjects: a pod waits for its Secret, starts as soon as it
// is there, and has the new value when it starts next.
func TestEnvironmentFromObjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.synced()
		s.listed()
		add := func(p *v1.Pod) {
			p.Spec.Containers[0].EnvFrom = []v1.EnvFromSource{{SecretRef: &v1.SecretEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "key"}}}}
		}
		pod := s.add("a", add)
		sink{s.ctx, s.p}.Changed(pod)
		s.expect("watch secret default/key")
		time.Sleep(2 * settle)
		s.expect("status a Pending ContainerCreating ready=false restarts=0")
		s.tell(&podspec.Object{Trouble: "no route to the server"})
		s.expect("status a Pending CreateContainerConfigError ready=false restarts=0", "event a CreateContainerConfigError")
		s.tell(nil)
		s.expect("status a Pending CreateContainerConfigError ready=false restarts=0", "event a CreateContainerConfigError")
		s.tell(&podspec.Object{Data: map[string][]byte{"K": []byte("1")}})
		s.expect("put pod-u-a boot=true")
		s.host("pod-u-a", running(1))
		s.expect("status a Running running ready=true restarts=0")
		// Nothing that is missing later touches what runs.
		s.tell(nil)
		s.expect()
		s.tell(&podspec.Object{Trouble: "no route to the server"})
		s.expect()
		s.tell(&podspec.Object{Data: map[string][]byte{"K": []byte("2")}})
		s.expect("put pod-u-a boot=true")
		s.tell(&podspec.Object{Data: map[string][]byte{"K": []byte("2")}})
		s.expect()
		// A second pod shares the watch; it ends with the last.
		other := s.add("b", add)
		sink{s.ctx, s.p}.Changed(other)
		s.expect("put pod-u-b boot=true")
		sink{s.ctx, s.p}.Deleted(other)
		s.expectSet("delete pod-u-b within 30s")
		sink{s.ctx, s.p}.Deleted(pod)
		s.expectSet("delete pod-u-a within 30s", "unwatch secret default/key")
	})
}

// TestDeadline: a pod whose activeDeadlineSeconds are over is stopped, and has
// failed once nothing of it runs; its group stays, with its logs.
func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.add("a", func(p *v1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(60)) })
		s.synced()
		s.listed()
		s.expect("put pod-u-a boot=true")
		s.host("pod-u-a", running(1))
		s.expect("status a Running running ready=true restarts=0")
		time.Sleep(58 * time.Second)
		s.expect()
		time.Sleep(2 * time.Second)
		s.expectBoth("stop pod-u-a within 30s", "put pod-u-a boot=false")
		ended := running(1)
		ended.State, ended.Ready, ended.Main.Exit = service.Dead, false, &service.Exit{At: time.Now(), Signal: 15}
		s.host("pod-u-a", ended)
		s.expectBoth("put pod-u-a boot=false", "status a Failed terminated Error ready=false restarts=0")
		if got := s.pods["u-a"].Status.Reason; got != "DeadlineExceeded" {
			t.Errorf("its reason is %q", got)
		}
		time.Sleep(time.Hour)
		s.expect()
	})
}
