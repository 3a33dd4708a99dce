package agent

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/image"
	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/podspec"
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
