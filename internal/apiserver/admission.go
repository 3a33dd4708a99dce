package apiserver

import (
	"context"
	"io"

	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/kubernetes/pkg/apis/apps"

	"legion.dev/legion/internal/daemonset"
)

// rolloutPlugin is the name of the admission plugin that refuses DaemonSets
// whose rollout annotations are wrong.
const rolloutPlugin = "LegionRollout"

func registerRollout(plugins *admission.Plugins) {
	plugins.Register(rolloutPlugin, func(io.Reader) (admission.Interface, error) {
		return rolloutAdmission{admission.NewHandler(admission.Create, admission.Update)}, nil
	})
}

type rolloutAdmission struct{ *admission.Handler }

var _ admission.ValidationInterface = rolloutAdmission{}

// Validate refuses what would halt the DaemonSet's updates. What was wrong
// before the change is let through: everything else about the object must
// remain changeable.
func (rolloutAdmission) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != apps.Resource("daemonsets") || a.GetSubresource() != "" {
		return nil
	}
	before := map[daemonset.Wrong]bool{}
	for _, w := range wrongOptions(a.GetOldObject()) {
		before[w] = true
	}
	var wrong field.ErrorList
	for _, w := range wrongOptions(a.GetObject()) {
		if !before[w] {
			wrong = append(wrong, field.Invalid(field.NewPath("metadata", "annotations").Key(w.Key), w.Value, w.Want))
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	return errors.NewInvalid(apps.Kind("DaemonSet"), a.GetName(), wrong)
}

func wrongOptions(obj runtime.Object) []daemonset.Wrong {
	if obj == nil {
		return nil
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil
	}
	_, wrong := daemonset.ParseOptions(m.GetAnnotations())
	return wrong
}
