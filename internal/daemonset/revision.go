package daemonset

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/dump"
)

// Hash names a template, as upstream does, so that revisions made by one
// controller are found again by the other.
func Hash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(*t))
	if collisions != nil {
		var b [8]byte
		binary.LittleEndian.PutUint32(b[:], uint32(*collisions))
		h.Write(b[:])
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// Patch is the data of a revision: the strategic merge patch that brings
// spec.template back.
func Patch(ds *appsv1.DaemonSet) ([]byte, error) {
	raw, err := json.Marshal(ds.Spec.Template)
	if err != nil {
		return nil, fmt.Errorf("cannot write down the template of daemonset %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	template := map[string]any{}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&template); err != nil {
		return nil, fmt.Errorf("cannot write down the template of daemonset %s/%s: %w", ds.Namespace, ds.Name, err)
	}
	template["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": template}})
}

// NewRevision makes the revision of the current template.
func NewRevision(ds *appsv1.DaemonSet, patch []byte, number int64) *appsv1.ControllerRevision {
	hash := Hash(&ds.Spec.Template, ds.Status.CollisionCount)
	labels := maps.Clone(ds.Spec.Template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name:            ds.Name + "-" + hash,
			Namespace:       ds.Namespace,
			Labels:          labels,
			Annotations:     maps.Clone(ds.Annotations),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(ds, appsv1.SchemeGroupVersion.WithKind("DaemonSet"))},
		},
		Data:     runtime.RawExtension{Raw: patch},
		Revision: number,
	}
}

// History is a DaemonSet's revisions, sorted out.
type History struct {
	// Current holds the current template, nil if no revision does.
	Current *appsv1.ControllerRevision
	// Number is what the current revision's number should be.
	Number int64
	// Duplicates hold the current template too; their pods belong to Current.
	Duplicates []*appsv1.ControllerRevision
	// Old are the others, oldest first.
	Old []*appsv1.ControllerRevision
}

// Sort sorts out the revisions of a DaemonSet whose template has this patch.
func Sort(revisions []*appsv1.ControllerRevision, patch []byte) History {
	var h History
	for _, r := range revisions {
		if !bytes.Equal(patch, r.Data.Raw) {
			h.Old = append(h.Old, r)
			h.Number = max(h.Number, r.Revision)
			continue
		}
		switch {
		case h.Current == nil:
			h.Current = r
		case r.Revision >= h.Current.Revision:
			h.Duplicates = append(h.Duplicates, h.Current)
			h.Current = r
		default:
			h.Duplicates = append(h.Duplicates, r)
		}
	}
	h.Number++
	slices.SortStableFunc(h.Old, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), cmp.Compare(a.Name, b.Name))
	})
	return h
}

// Expired returns the old revisions that are over the limit, oldest first,
// leaving those out that pods still use.
func (h *History) Expired(limit int, uses func(hash string) bool) []*appsv1.ControllerRevision {
	over := len(h.Old) - limit
	var expired []*appsv1.ControllerRevision
	for _, r := range h.Old {
		if len(expired) >= over {
			break
		}
		if hash := r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]; hash != "" && uses(hash) {
			continue
		}
		expired = append(expired, r)
	}
	return expired
}

// currentSinceKey is the annotation of a revision that became the current one
// again: since when. One that became it only once is current since it was made.
const currentSinceKey = "legion.dev/current-since"

// MarkCurrent notes in a revision that it becomes the current one again.
func MarkCurrent(r *appsv1.ControllerRevision, now time.Time) {
	r.Annotations = maps.Clone(r.Annotations)
	if r.Annotations == nil {
		r.Annotations = map[string]string{}
	}
	r.Annotations[currentSinceKey] = now.UTC().Format(time.RFC3339)
}

// CurrentSince returns since when the current revision is that.
func CurrentSince(r *appsv1.ControllerRevision) time.Time {
	if r == nil {
		return time.Time{}
	}
	if t, err := time.Parse(time.RFC3339, r.Annotations[currentSinceKey]); err == nil {
		return t
	}
	return r.CreationTimestamp.Time
}

// mergedKey is the annotation of a revision to which others have given way that
// held the same: their hashes. A pod may have been under way with one of them.
const (
	mergedKey = "legion.dev/merged"
	maxMerged = 16
)

// MarkMerged notes in a revision that others give way to it, and says whether
// that is news.
func MarkMerged(r *appsv1.ControllerRevision, others []*appsv1.ControllerRevision) bool {
	all := Merged(r)
	before := len(all)
	for _, o := range others {
		for _, hash := range append(Merged(o), o.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]) {
			if hash != "" && !slices.Contains(all, hash) {
				all = append(all, hash)
			}
		}
	}
	if len(all) == before {
		return false
	}
	r.Annotations = maps.Clone(r.Annotations)
	if r.Annotations == nil {
		r.Annotations = map[string]string{}
	}
	r.Annotations[mergedKey] = strings.Join(all[max(0, len(all)-maxMerged):], " ")
	return true
}

// Merged returns the hashes of the revisions that gave way to one.
func Merged(r *appsv1.ControllerRevision) []string { return strings.Fields(r.Annotations[mergedKey]) }

// AsOf returns the DaemonSet with the template of an earlier revision.
func AsOf(ds *appsv1.DaemonSet, r *appsv1.ControllerRevision) (*appsv1.DaemonSet, error) {
	var data struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &data); err != nil {
		return nil, fmt.Errorf("cannot read the template of revision %s: %w", r.Name, err)
	}
	old := ds.DeepCopy()
	old.Spec.Template = data.Spec.Template
	// The generation tells current pods from others.
	delete(old.Annotations, appsv1.DeprecatedTemplateGeneration)
	return old, nil
}

// Of returns the revision with a hash, nil if it is not there.
func (h *History) Of(hash string) *appsv1.ControllerRevision {
	for _, r := range append(slices.Clone(h.Old), h.Current) {
		if r != nil && r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == hash {
			return r
		}
	}
	return nil
}
