package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

// objectKey names a ConfigMap or Secret that pods of this node refer to.
type objectKey struct {
	namespace string
	ref       podspec.Ref
}

// objectAPI is what watching one object needs of the API server. Each news of
// it goes to told: what it holds, nil where there is none, or why it cannot be
// read.
type objectAPI interface {
	WatchObject(ctx context.Context, namespace string, ref podspec.Ref, told func(*podspec.Object))
}

// watched is one object that is being watched for some pods.
type watched struct {
	end context.CancelFunc
	// read: the server has told of it; object is nil where there is none.
	read   bool
	object *podspec.Object
	pods   map[types.UID]bool
}

// objects keeps a watch of each object that pods of this node refer to, and of
// nothing else: the server lets a node read no other (the Node authorizer).
// The pods' loop owns it.
type objects struct {
	api     objectAPI
	news    func(ctx context.Context, key objectKey, object *podspec.Object)
	watches map[objectKey]*watched
}

// want watches the objects that a pod refers to until release.
func (o *objects) want(ctx context.Context, pod *v1.Pod) {
	for _, ref := range podspec.References(pod) {
		key := objectKey{pod.Namespace, ref}
		w := o.watches[key]
		if w == nil {
			var watch context.Context
			w = &watched{pods: map[types.UID]bool{}}
			watch, w.end = context.WithCancel(ctx)
			o.watches[key] = w
			go o.api.WatchObject(watch, key.namespace, key.ref, func(object *podspec.Object) { o.news(watch, key, object) })
		}
		w.pods[pod.UID] = true
	}
}

// release ends the watches that only this pod needed.
func (o *objects) release(uid types.UID) {
	for key, w := range o.watches {
		if delete(w.pods, uid); len(w.pods) == 0 {
			w.end()
			delete(o.watches, key)
		}
	}
}

// told keeps the news of an object and gives the pods that it concerns.
func (o *objects) told(key objectKey, object *podspec.Object) []types.UID {
	w := o.watches[key]
	if w == nil {
		return nil
	}
	if w.read && w.object != nil && object != nil && object.Trouble != "" {
		return nil // what was read before stands
	}
	w.read, w.object = true, object
	var pods []types.UID
	for uid := range w.pods {
		pods = append(pods, uid)
	}
	return pods
}

// of gives what is known of the objects of a pod.
func (o *objects) of(pod *v1.Pod) podspec.Objects {
	out := podspec.Objects{}
	for _, ref := range podspec.References(pod) {
		if w := o.watches[objectKey{pod.Namespace, ref}]; w != nil && w.read {
			out[ref] = w.object
		}
	}
	return out
}

// objectTold takes news of an object. A pod that waits for it starts; one that
// runs sees it in its volumes, and in its environment when it starts next.
func (p *pods) objectTold(ctx context.Context, key objectKey, object *podspec.Object, now time.Time) {
	for _, uid := range p.objects.told(key, object) {
		if r := p.records[uid]; r != nil && r.pod != nil && r.group != nil {
			p.compile(r)
			p.step(ctx, r, now)
		}
	}
}

// compile makes the pod's group of what is known now. A pod that runs keeps the
// group it has where a new one could not run.
func (p *pods) compile(r *record) {
	known, node := p.objects.of(r.pod), p.node
	if podspec.ReadsEtc(r.pod, node) {
		node.Hosts, node.Resolver = readText("/etc/hosts"), readText("/etc/resolv.conf")
	}
	r.missingSecrets = nil
	for _, s := range r.pod.Spec.ImagePullSecrets {
		if o, read := known[podspec.Ref{Kind: podspec.Secret, Name: s.Name}]; read && o == nil {
			r.missingSecrets = append(r.missingSecrets, s.Name)
		}
	}
	if node.Root {
		r.volumes = podspec.Volumes(r.pod, node, known)
		r.stale = r.stale || len(r.volumes) > 0
	}
	node.Images, node.VolumeImages = r.pulled()
	node.Profiles = p.profiles(r)
	group, report := podspec.Compile(r.allocated.With(r.pod), node, known)
	if r.lookAgain = (time.Time{}); len(report.Blocked) > 0 && len(node.Profiles) > 0 {
		r.lookAgain = time.Now().Add(profileAgain)
	}
	if len(report.Blocked) > 0 && (r.put || r.host != nil) {
		if r.group == nil {
			r.group, r.report = &group, report
		}
		return
	}
	if r.put && r.group != nil && !sameGroup(r.group, &group) {
		r.renew = true
	}
	r.group, r.report = &group, report
}

// readText is a file of the node; one that cannot be read is empty.
func readText(path string) string {
	text, _ := os.ReadFile(path)
	return string(text)
}

// sameGroup compares what the host would do with two groups.
func sameGroup(a, b *service.Group) bool {
	x, err1 := json.Marshal(a.Services)
	y, err2 := json.Marshal(b.Services)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// compare finds out whether what the host has of a pod is what the objects say
// now: they may have changed while the agent was away.
func (p *pods) compare(r *record, spec *service.Group) {
	if r.compared || r.pod == nil || r.group == nil || len(r.report.Blocked)+len(r.report.Ephemeral) > 0 || len(spec.Services) == 0 {
		return
	}
	r.compared = true
	r.renew = r.renew || !sameGroup(r.group, spec)
}
