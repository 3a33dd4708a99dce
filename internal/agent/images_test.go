package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/image"
	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/podview"
	"legion.dev/legion/internal/service"
)

// shop is an image store on one page: its answers are what the test puts in.
type shop struct {
	s      *stage
	answer error
}

func (h *shop) Ensure(_ context.Context, name string, policy v1.PullPolicy, logins []image.Login) (*ocispec.Image, error) {
	user := ""
	for _, l := range logins {
		user += " as " + l.Username
	}
	h.s.note("ensure %s %s%s", name, policy, user)
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.answer != nil {
		return nil, h.answer
	}
	return &ocispec.Image{ID: "sha256:1", Ref: "x@sha256:1", Layers: []string{"/l"}, Cmd: []string{"/run"}}, nil
}

// waiting is the reason and message that the pod was last shown with.
func (s *stage) waiting(uid types.UID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pods[uid]
	if p == nil || len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Waiting == nil {
		return ""
	}
	w := p.Status.ContainerStatuses[0].State.Waiting
	return w.Reason + ": " + w.Message
}

// TestImagePulls: a failure is shown, then the waiting for the next try, which
// comes after 10 s, then 20 s, up to 5 min; an image that comes is run at once.
func TestImagePulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		h := &shop{s: s, answer: errors.New("no such manifest")}
		s.p.post(s.ctx, func(context.Context, time.Time) {
			s.p.images, s.p.node.OCI = h, &ocispec.Runtime{Program: "/runc", State: "/state"}
		})
		s.listed()
		s.synced()
		p := s.add("app", func(p *v1.Pod) {
			p.Spec.RuntimeClassName = nil
			p.Spec.Containers[0].Image, p.Spec.Containers[0].Command = "app:1", nil
			p.Spec.Containers[0].ImagePullPolicy = v1.PullIfNotPresent
		})
		sink{s.ctx, s.p}.Changed(p)
		synctest.Wait()
		if got, want := s.waiting(p.UID), "ErrImagePull: no such manifest"; got != want {
			t.Errorf("at first: %q, want %q", got, want)
		}
		time.Sleep(showFailure + time.Second)
		synctest.Wait()
		if got, want := s.waiting(p.UID), `ImagePullBackOff: Back-off pulling image "app:1": ErrImagePull: no such manifest`; got != want {
			t.Errorf("then: %q, want %q", got, want)
		}
		s.mu.Lock()
		s.log = nil
		s.mu.Unlock()
		begun := time.Now()
		tries := func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			n := 0
			for _, line := range s.log {
				if line == "ensure app:1 IfNotPresent" {
					n++
				}
			}
			return n
		}
		// Of 10, 20, 40, 80, 160, 300, 300 … seconds 6 have passed.
		time.Sleep(10*time.Second + 20*time.Second + 40*time.Second + 80*time.Second + 160*time.Second)
		synctest.Wait()
		if got := tries(); got != 5 {
			t.Errorf("%d tries in %s, want 5", got, time.Since(begun))
		}
		s.mu.Lock()
		h.answer = nil
		s.mu.Unlock()
		time.Sleep(300 * time.Second)
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		put := fmt.Sprintf("put %s", podspec.GroupName(p.UID))
		for _, line := range s.log {
			if len(line) >= len(put) && line[:len(put)] == put {
				return
			}
		}
		t.Errorf("the pod was not given to the host: %q", s.log)
	})
}

// TestImageReasons: each refusal has the kubelet's reason.
func TestImageReasons(t *testing.T) {
	store, err := image.Open(t.TempDir(), image.Options{Flat: true})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{store: store, slots: make(chan struct{}, 1)}
	for _, test := range []struct {
		name   string
		policy v1.PullPolicy
		reason string
	}{
		{"UPPER", v1.PullAlways, "InvalidImageName"},
		{"app:1", v1.PullNever, "ErrImageNeverPull"},
		{"127.0.0.1:1/app:1", v1.PullIfNotPresent, "ErrImagePull"}, // nobody listens there
	} {
		_, err := k.Ensure(t.Context(), test.name, test.policy, nil)
		if err == nil {
			t.Errorf("%s is there", test.name)
			continue
		}
		w := wanted{}
		w.failed(err, time.Unix(0, 0))
		if w.Reason != test.reason {
			t.Errorf("%s: %s, want %s", test.name, w.Reason, test.reason)
		}
	}
}

// TestImageVolumes: an image of a volume is had before the pod runs, also of a
// process of the host; one that runs keeps the image that it has mounted, though
// the agent starts anew and the name means another; and the image is in use.
func TestImageVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.p.post(s.ctx, func(context.Context, time.Time) { s.p.images = &shop{s: s} })
		s.listed()
		s.synced()
		add := func(name string) *v1.Pod {
			return s.add(name, func(p *v1.Pod) {
				p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "data:1", PullPolicy: v1.PullAlways}}}}
				p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "data", MountPath: "/data"}}
			})
		}
		sink{s.ctx, s.p}.Changed(add("a"))
		s.expect("ensure data:1 Always", "put pod-u-a boot=true")

		p := add("b")
		s.p.HostEvent(s.ctx, hostapi.Event{Type: hostapi.Changed, Name: "pod-u-b", Group: &hostapi.Group{
			Spec: service.Group{Name: "pod-u-b", Boot: true, Services: []service.Service{{Name: "c", Exec: service.ExecContext{
				Mounts: []service.Mount{{Source: "/pods/u-b/volumes/data", Target: "/data", Image: &service.ImageFiles{ID: "sha256:7"}}},
			}}}},
			Status: service.GroupStatus{Name: "pod-u-b", Services: []service.Status{running(1)}},
		}})
		sink{s.ctx, s.p}.Changed(p)
		synctest.Wait()
		s.mu.Lock()
		log := strings.Join(s.log, "\n")
		s.mu.Unlock()
		if !strings.Contains(log, "ensure sha256:7 Never") || strings.Contains(log, "ensure data:1") {
			t.Errorf("asked:\n%s", log)
		}
		used, known := s.p.used(s.ctx)
		if !known || !used["sha256:1"] || !used["sha256:7"] || len(used) != 2 {
			t.Errorf("in use: %v, %v", used, known)
		}
	})
}

// TestMissingPullSecret: it is told once, beside what else is wrong, and the
// image is tried without it.
func TestMissingPullSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.p.post(s.ctx, func(context.Context, time.Time) {
			s.p.images, s.p.node.OCI = &shop{s: s, answer: errors.New("unauthorized")}, &ocispec.Runtime{Program: "/runc", State: "/state"}
		})
		s.listed()
		s.synced()
		sink{s.ctx, s.p}.Changed(s.add("a", func(p *v1.Pod) {
			p.Spec.RuntimeClassName, p.Spec.Containers[0].Image = nil, "app:1"
			p.Spec.ImagePullSecrets = []v1.LocalObjectReference{{Name: "mine"}}
		}))
		s.expect("watch secret default/mine")
		s.tell(nil)
		s.expect("ensure app:1 ", "status a Pending ErrImagePull ready=false restarts=0",
			"event a FailedToRetrieveImagePullSecret", "event a ErrImagePull")
		time.Sleep(showFailure)
		s.expect("status a Pending ImagePullBackOff ready=false restarts=0", "event a ImagePullBackOff")
	})
}

// TestEphemeralImage: the image of an ephemeral container is got when the pod
// runs already; until then it waits, and nothing else does.
func TestEphemeralImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		h := &shop{s: s}
		s.p.post(s.ctx, func(context.Context, time.Time) {
			s.p.images, s.p.node.OCI = h, &ocispec.Runtime{Program: "/runc", State: "/state"}
		})
		s.listed()
		s.synced()
		p := s.add("app", func(p *v1.Pod) {
			p.Spec.RuntimeClassName = nil
			p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "app:1", v1.PullIfNotPresent
		})
		sink{s.ctx, s.p}.Changed(p)
		synctest.Wait()
		s.host(podspec.GroupName(p.UID), running(1))
		synctest.Wait()
		s.mu.Lock()
		h.answer, s.log = errors.New("no such manifest"), nil
		s.mu.Unlock()
		s.edit(p.UID, func(p *v1.Pod) {
			p.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{
				Name: "debug", Image: "debug:1", ImagePullPolicy: v1.PullIfNotPresent, Command: []string{"/sh"},
			}}}
		})
		synctest.Wait()
		s.mu.Lock()
		got := s.pods[p.UID].Status
		tried := slices.Contains(s.log, "ensure debug:1 IfNotPresent")
		h.answer, s.log = nil, nil
		s.mu.Unlock()
		if len(got.EphemeralContainerStatuses) != 1 || got.EphemeralContainerStatuses[0].State.Waiting == nil || got.EphemeralContainerStatuses[0].State.Waiting.Reason != errImagePull || !tried {
			t.Errorf("it waits as %+v; tried: %v", got.EphemeralContainerStatuses, tried)
		}
		if c := podview.Condition(&got, v1.PodReady); c.Status != v1.ConditionTrue || got.ContainerStatuses[0].State.Running == nil {
			t.Errorf("the pod is %+v", got)
		}
		time.Sleep(firstPullBackOff + time.Second)
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if !slices.ContainsFunc(s.log, func(l string) bool { return strings.HasPrefix(l, "put "+podspec.GroupName(p.UID)) }) {
			t.Errorf("it was not given to the host: %q", s.log)
		}
	})
}
