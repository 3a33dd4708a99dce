package podspec

import (
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// ObjectKind is what a pod may refer to in its namespace.
type ObjectKind string

// The kinds of object that a pod refers to.
const (
	ConfigMap ObjectKind = "configmap"
	Secret    ObjectKind = "secret"
)

// Ref names an object of the pod's namespace.
type Ref struct {
	Kind ObjectKind
	Name string
}

// Object is a ConfigMap or a Secret as far as pods see it.
type Object struct {
	// Data are a ConfigMap's data, or all of a Secret's.
	Data map[string][]byte
	// Binary is a ConfigMap's binaryData: for volumes, not for environments.
	Binary map[string][]byte
	// Trouble is why the object could not be read; the rest is empty then.
	Trouble string
}

// Objects are what is known of the objects that a pod refers to: one that is
// not in the map has not been read yet, a nil one does not exist.
type Objects map[Ref]*Object

// pullsImages: a container or a volume of the pod is of an image.
func pullsImages(pod *v1.Pod) bool {
	return OCI(pod) || slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool { return v.Image != nil })
}

// References lists the objects that a pod refers to, in a fixed order.
func References(pod *v1.Pod) []Ref {
	found := map[Ref]bool{}
	add := func(kind ObjectKind, name string) {
		if name != "" {
			found[Ref{kind, name}] = true
		}
	}
	env := func(list []v1.Container) {
		for i := range list {
			for _, from := range list[i].EnvFrom {
				if from.ConfigMapRef != nil {
					add(ConfigMap, from.ConfigMapRef.Name)
				}
				if from.SecretRef != nil {
					add(Secret, from.SecretRef.Name)
				}
			}
			for _, v := range list[i].Env {
				if v.ValueFrom != nil && v.ValueFrom.ConfigMapKeyRef != nil {
					add(ConfigMap, v.ValueFrom.ConfigMapKeyRef.Name)
				}
				if v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil {
					add(Secret, v.ValueFrom.SecretKeyRef.Name)
				}
			}
		}
	}
	if pullsImages(pod) {
		for _, s := range pod.Spec.ImagePullSecrets {
			add(Secret, s.Name)
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.ConfigMap != nil {
			add(ConfigMap, v.ConfigMap.Name)
		}
		if v.Secret != nil {
			add(Secret, v.Secret.SecretName)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				add(ConfigMap, s.ConfigMap.Name)
			}
			if s.Secret != nil {
				add(Secret, s.Secret.Name)
			}
		}
	}
	env(pod.Spec.InitContainers)
	env(pod.Spec.Containers)
	env(Ephemeral(pod))
	out := slices.Collect(maps.Keys(found))
	slices.SortFunc(out, func(a, b Ref) int {
		if a.Kind != b.Kind {
			return compare(a.Kind, b.Kind)
		}
		return compare(a.Name, b.Name)
	})
	return out
}

func compare[T ~string](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// unready is why an object cannot be used: its reason, empty where the pod
// only has to wait for it to be read.
type unready struct{ reason, message string }

// object finds what a container needs. optional makes a missing one nil.
func (c *compiler) object(ref Ref, optional bool) (*Object, *unready) {
	o, read := c.objects[ref]
	switch {
	case !read:
		return nil, &unready{}
	case o == nil && optional:
		return nil, nil
	case o == nil:
		return nil, &unready{ConfigError, fmt.Sprintf("%s %q not found in namespace %s: create it, and the container starts", ref.Kind, ref.Name, c.pod.Namespace)}
	case o.Trouble != "":
		return nil, &unready{ConfigError, fmt.Sprintf("cannot read %s %q in namespace %s: %s", ref.Kind, ref.Name, c.pod.Namespace, o.Trouble)}
	}
	return o, nil
}

// blockOn blocks a container because of what it waits for.
func (c *compiler) blockOn(container, at string, u *unready) {
	if u.reason == "" {
		c.report.Blocked = append(c.report.Blocked, Blocked{Container: container, Reason: Creating})
		return
	}
	c.block(container, u.reason, "%s: %s", at, u.message)
}
