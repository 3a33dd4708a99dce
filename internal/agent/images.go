package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/image"
	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

// images is what the pods' loop needs of the image store.
type images interface {
	// Ensure gives an image as the policy says; it may take long.
	Ensure(ctx context.Context, name string, policy v1.PullPolicy, logins []image.Login) (*ocispec.Image, error)
}

// Reasons of a container that waits for its image; the kubelet's words
// (pkg/kubelet/images/types.go).
const (
	errImagePull      = "ErrImagePull"
	imagePullBackOff  = "ImagePullBackOff"
	errImageNeverPull = "ErrImageNeverPull"
	invalidImageName  = "InvalidImageName"
)

// imageError is why an image is not there, with its reason.
type imageError struct {
	reason string
	err    error
}

func (e *imageError) Error() string { return e.err.Error() }
func (e *imageError) Unwrap() error { return e.err }

// wanted is an image that a pod needs.
type wanted struct {
	busy     bool
	failures int
	// tried is when the last try failed, retryAt when the next may begin.
	tried, retryAt time.Time
	podspec.Pulled
	// cause is the last failure itself.
	cause string
}

// The kubelet's times between tries (pkg/kubelet/kubelet.go), and how long the
// failure itself is shown before the waiting is.
const (
	firstPullBackOff = 10 * time.Second
	mostPullBackOff  = 300 * time.Second
	showFailure      = 5 * time.Second
)

func (w *wanted) failed(err error, now time.Time) {
	w.Reason, w.cause = errImagePull, err.Error()
	var why *imageError
	if errors.As(err, &why) {
		w.Reason = why.reason
	}
	w.Message = w.cause
	w.tried, w.retryAt = now, now.Add(min(firstPullBackOff<<min(w.failures, 8), mostPullBackOff))
	w.failures++
}

// turn shows the waiting in place of a failure that has been seen; it says
// whether that is new.
func (w *wanted) turn(name string, now time.Time) bool {
	if w.Reason != errImagePull || now.Before(w.tried.Add(showFailure)) {
		return false
	}
	w.Reason = imagePullBackOff
	w.Message = fmt.Sprintf("Back-off pulling image %q: %s: %s", name, errImagePull, w.cause)
	return true
}

// next is when there is something to do, zero for never.
func (w *wanted) next() time.Time {
	switch {
	case w.Image != nil || w.busy:
		return time.Time{}
	case w.Reason == errImagePull:
		return w.tried.Add(showFailure)
	}
	return w.retryAt
}

// imageUse is what a pod has an image for: its containers of that name, or the volume.
type imageUse struct{ name, volume string }

// fetch gets the images of a pod that are to be had now. Those of a pod that
// the host has already are looked up only.
func (p *pods) fetch(r *record, now time.Time) {
	if r.pod == nil || p.images == nil || r.finished() || r.pod.DeletionTimestamp != nil {
		return
	}
	turned := false
	for u, policy := range p.uses(r.pod) {
		w := r.images[u]
		if w == nil {
			if r.images == nil {
				r.images = map[imageUse]*wanted{}
			}
			w = &wanted{}
			r.images[u] = w
		}
		turned = w.turn(u.name, now) || turned
		if w.Image != nil || w.busy || now.Before(w.retryAt) {
			continue
		}
		name := u.name
		if (r.host != nil || r.put) && !r.newcomer(u) {
			policy = v1.PullNever
			if id := r.mounted[u.volume]; id != "" {
				name = id // though the name may mean another one by now
			}
		}
		logins, ready := p.logins(r.pod, name)
		if !ready {
			continue
		}
		w.busy = true
		p.ensure(r, u, name, policy, logins)
	}
	if turned {
		p.compile(r)
	}
}

// newcomer: an ephemeral container that the host has not yet is alone to want
// the image.
func (r *record) newcomer(u imageUse) bool {
	for _, c := range podspec.Containers(r.pod) {
		if c.Image == u.name {
			return false
		}
	}
	for _, c := range podspec.Ephemeral(r.pod) {
		known := r.host != nil && slices.ContainsFunc(r.host.Services, func(s service.Status) bool { return s.Name == c.Name })
		if c.Image == u.name && known {
			return false
		}
	}
	return u.volume == ""
}

func (p *pods) ensure(r *record, u imageUse, name string, policy v1.PullPolicy, logins []image.Login) {
	ctx, uid := p.life, r.uid
	go func() {
		img, err := p.images.Ensure(ctx, name, policy, logins)
		p.post(ctx, func(ctx context.Context, now time.Time) {
			r := p.records[uid]
			if r == nil || r.images[u] == nil {
				return
			}
			w := r.images[u]
			w.busy = false
			if err != nil {
				w.failed(err, now)
				p.log.Warn("cannot have an image", "image", name, "pod", uid, "error", err)
			} else {
				w.Pulled = podspec.Pulled{Image: img}
			}
			if r.pod != nil {
				p.compile(r)
			}
			p.step(ctx, r, now)
		})
	}()
}

// uses are what the pod needs images for; of two policies for one the stricter.
func (p *pods) uses(pod *v1.Pod) map[imageUse]v1.PullPolicy {
	out := map[imageUse]v1.PullPolicy{}
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Image != nil && p.node.Root {
			out[imageUse{v.Image.Reference, v.Name}] = v.Image.PullPolicy
		}
	}
	if p.node.OCI == nil || !podspec.OCI(pod) {
		return out
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers, podspec.Ephemeral(pod)} {
		for i := range list {
			if c := &list[i]; out[imageUse{name: c.Image}] != v1.PullAlways {
				out[imageUse{name: c.Image}] = c.ImagePullPolicy
			}
		}
	}
	return out
}

// logins are those that the pod's imagePullSecrets have for an image. It is
// not ready while one of them has not been read.
func (p *pods) logins(pod *v1.Pod, name string) (list []image.Login, ready bool) {
	known := p.objects.of(pod)
	for _, s := range pod.Spec.ImagePullSecrets {
		if s.Name == "" {
			continue
		}
		o, read := known[podspec.Ref{Kind: podspec.Secret, Name: s.Name}]
		if !read {
			return nil, false
		}
		if o == nil {
			continue // the kubelet goes on without it as well
		}
		for _, key := range []string{v1.DockerConfigJsonKey, v1.DockerConfigKey} {
			if len(o.Data[key]) == 0 {
				continue
			}
			more, err := image.Logins(o.Data[key], name)
			if err != nil {
				p.log.Warn("cannot use an imagePullSecret", "secret", s.Name, "namespace", pod.Namespace, "error", err)
			}
			list = append(list, more...)
		}
	}
	return list, true
}

// mountedImages are the IDs of the images that a group's volumes show, by the
// volumes' names.
func mountedImages(g *service.Group) map[string]string {
	out := map[string]string{}
	for i := range g.Services {
		for _, m := range g.Services[i].Exec.Mounts {
			if m.Image != nil {
				out[filepath.Base(m.Source)] = m.Image.ID
			}
		}
	}
	return out
}

// used gives the IDs of the images of all pods; false where that is not known
// yet.
func (p *pods) used(ctx context.Context) (map[string]bool, bool) {
	answer := make(chan map[string]bool, 1)
	p.post(ctx, func(context.Context, time.Time) {
		if !p.listed || !p.hostSynced {
			answer <- nil
			return
		}
		out := map[string]bool{}
		for _, r := range p.records {
			for _, id := range r.runs {
				out[id] = true
			}
			for _, w := range r.images {
				if w.Image != nil {
					out[w.Image.ID] = true
				}
			}
		}
		answer <- out
	})
	select {
	case out := <-answer:
		return out, out != nil
	case <-ctx.Done():
		return nil, false
	}
}

// pulled is what is known of the images of a record's containers, by their names,
// and of its volumes, by the volumes'.
func (r *record) pulled() (images, volumes map[string]podspec.Pulled) {
	images, volumes = map[string]podspec.Pulled{}, map[string]podspec.Pulled{}
	for u, w := range r.images {
		if u.volume != "" {
			volumes[u.volume] = w.Pulled
		} else {
			images[u.name] = w.Pulled
		}
	}
	return images, volumes
}
