package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/volume"
)

// files is what the pods' loop needs of the disk.
type files interface {
	// Write makes a pod's volumes what they shall be. held are the tokens that
	// an earlier call gave; those that are new enough are used again.
	Write(ctx context.Context, pod *v1.Pod, volumes []podspec.Volume, held tokens) (tokens, error)
	// Remove removes all that a pod had on the disk.
	Remove(uid types.UID) error
	// Usage is how much of the disk directories take, in bytes.
	Usage(ctx context.Context, dirs []string) (int64, error)
	// Left lists the pods that have something on the disk.
	Left() []types.UID
}

// tokens are those that were had for a pod, by volume and path.
type tokens map[string]bearer

type bearer struct {
	text string
	// renew is when to ask for the next.
	renew time.Time
}

// next is when the first of them is to be renewed, zero for never.
func (t tokens) next() time.Time {
	var next time.Time
	for _, one := range t {
		if next.IsZero() || one.renew.Before(next) {
			next = one.renew
		}
	}
	return next
}

// tokenAPI is what writing volumes needs of the API server.
type tokenAPI interface {
	CreateToken(ctx context.Context, namespace, account string, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error)
}

// disk keeps the pods' volumes below base.
type disk struct {
	base string
	api  tokenAPI
}

func (d disk) Write(ctx context.Context, pod *v1.Pod, volumes []podspec.Volume, held tokens) (tokens, error) {
	got := tokens{}
	var problems []error
	for _, v := range volumes {
		content, err := d.content(ctx, pod, v, held, got)
		if err == nil {
			_, err = volume.Write(podspec.VolumeDir(d.base, string(pod.UID), v.Name), content, v.Points, volume.Owner{User: v.User, Group: v.Group})
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("MountVolume.SetUp failed for volume %q: %w", v.Name, err))
		}
	}
	return got, errors.Join(problems...)
}

func (d disk) content(ctx context.Context, pod *v1.Pod, v podspec.Volume, held, got tokens) (map[string]volume.File, error) {
	out := map[string]volume.File{}
	for name, f := range v.Files {
		if f.Token == nil {
			out[name] = volume.File{Data: f.Data, Mode: f.Mode}
			continue
		}
		key := v.Name + "/" + name
		one, err := d.token(ctx, pod, f.Token, held[key])
		if err != nil {
			return nil, err
		}
		got[key] = one
		out[name] = volume.File{Data: []byte(one.text), Mode: f.Mode}
	}
	return out, nil
}

// token gives a token bound to the pod: the one that is held until four fifths
// of its life, or a day, are over (pkg/kubelet/token of Kubernetes).
func (d disk) token(ctx context.Context, pod *v1.Pod, want *podspec.Token, held bearer) (bearer, error) {
	now := time.Now()
	if held.text != "" && now.Before(held.renew) {
		return held, nil
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &want.Seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if want.Audience != "" {
		request.Spec.Audiences = []string{want.Audience}
	}
	answer, err := d.api.CreateToken(ctx, pod.Namespace, pod.Spec.ServiceAccountName, request)
	if err != nil {
		return bearer{}, fmt.Errorf("cannot get a token for service account %s/%s: %w", pod.Namespace, pod.Spec.ServiceAccountName, err)
	}
	life := answer.Status.ExpirationTimestamp.Sub(now)
	return bearer{text: answer.Status.Token, renew: now.Add(min(life*4/5, 24*time.Hour))}, nil
}

func (d disk) Remove(uid types.UID) error {
	if uid == "" || filepath.Base(string(uid)) != string(uid) {
		return fmt.Errorf("%q is no UID", uid)
	}
	return os.RemoveAll(filepath.Join(d.base, string(uid)))
}

func (d disk) Left() []types.UID {
	entries, err := os.ReadDir(d.base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var out []types.UID
	for _, e := range entries {
		out = append(out, types.UID(e.Name()))
	}
	return out
}

// write brings a record's volumes up to date, beside the loop.
func (p *pods) write(ctx context.Context, r *record, now time.Time) {
	if next := r.tokens.next(); !next.IsZero() && !now.Before(next) {
		r.stale = true
	}
	if r.pod == nil || !r.stale || r.finished() || len(r.blocked()) > 0 || !r.toDisk.free(now) {
		return
	}
	r.toDisk.busy, r.stale = true, false
	pod, volumes, held := r.pod, r.volumes, r.tokens
	go func() {
		got, err := p.files.Write(ctx, pod, volumes, held)
		p.post(ctx, func(ctx context.Context, now time.Time) {
			r.toDisk.busy = false
			if err != nil {
				p.log.Warn("cannot write a pod's volumes", "pod", r.uid, "error", err)
				r.stale, r.diskTrouble = true, err.Error()
				r.toDisk.failed(now)
			} else {
				r.toDisk.succeeded()
				r.written, r.diskTrouble, r.tokens = true, "", got
			}
			p.step(ctx, r, now)
		})
	}()
}

// sweep removes what pods left on the disk that are gone, once the server and
// the host have told which there are.
func (p *pods) sweep() {
	if p.swept || !p.listed || !p.hostSynced {
		return
	}
	p.swept = true
	for _, uid := range p.files.Left() {
		if p.records[uid] == nil {
			p.removeFiles(uid)
		}
	}
}

func (p *pods) removeFiles(uid types.UID) {
	go func() {
		if err := p.files.Remove(uid); err != nil {
			p.log.Warn("cannot remove a pod's volumes", "pod", uid, "error", err)
		}
	}()
}
