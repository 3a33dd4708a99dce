package podspec

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"legion.dev/legion/internal/service"
)

// environment is a container's, in the order of the manifest.
type environment struct {
	names  []string
	values map[string]string
	// files are those whose values are known at the start alone: till then a mark
	// stands for each.
	files []service.FileVariable
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) list() []string {
	out := make([]string, 0, len(e.names))
	for _, n := range e.names {
		out = append(out, n+"="+e.values[n])
	}
	return out
}

// environment resolves envFrom and env as the kubelet does: in order, each
// value of env expanded with those of env before it.
func (c *compiler) environment(ctr *v1.Container, at string) *environment {
	env := &environment{values: map[string]string{}}
	env.set("HOSTNAME", c.node.Name)
	if ctr.TTY {
		env.set("TERM", "xterm") // as container runtimes do
	}
	before := map[string]string{"HOSTNAME": c.node.Name}
	if host, port := c.node.ServerHost, c.node.ServerPort; host != "" {
		// The service "kubernetes": by these a program in a pod finds the API.
		for _, v := range [][2]string{{"KUBERNETES_SERVICE_HOST", host}, {"KUBERNETES_SERVICE_PORT", port}, {"KUBERNETES_SERVICE_PORT_HTTPS", port}} {
			before[v[0]] = v[1]
			env.set(v[0], v[1])
		}
	}
	for i := range ctr.EnvFrom {
		c.envFrom(ctr, &ctr.EnvFrom[i], fmt.Sprintf("%s.envFrom[%d]", at, i), env)
	}
	expand := expansion.MappingFuncFor(before)
	for i := range ctr.Env {
		v := &ctr.Env[i]
		path := fmt.Sprintf("%s.env[%d]", at, i)
		value, ok := "", true
		switch {
		case v.ValueFrom == nil:
			value = expansion.Expand(v.Value, expand)
		case v.ValueFrom.FileKeyRef != nil && c.node.Root:
			value = c.fromFile(v, env)
		default:
			value, ok = c.valueFrom(ctr, v, path+".valueFrom")
		}
		if ok {
			before[v.Name] = value
			env.set(v.Name, value)
		}
	}
	return env
}

// fromFile notes a variable that a file of an emptyDir sets, and gives the mark
// that stands for it.
func (c *compiler) fromFile(v *v1.EnvVar, env *environment) string {
	ref := v.ValueFrom.FileKeyRef
	mark := fmt.Sprintf("\x00%d\x00", len(env.files))
	env.files = append(env.files, service.FileVariable{
		Name: v.Name, Mark: mark, Key: ref.Key, Optional: isTrue(ref.Optional),
		Dir: VolumeDir(c.node.PodDir, string(c.pod.UID), ref.VolumeName), Path: ref.Path,
	})
	return mark
}

// envFrom takes all of an object's values, by name.
func (c *compiler) envFrom(ctr *v1.Container, from *v1.EnvFromSource, at string, env *environment) {
	var ref Ref
	var optional *bool
	switch {
	case from.ConfigMapRef != nil:
		ref, optional, at = Ref{ConfigMap, from.ConfigMapRef.Name}, from.ConfigMapRef.Optional, at+".configMapRef"
	case from.SecretRef != nil:
		ref, optional, at = Ref{Secret, from.SecretRef.Name}, from.SecretRef.Optional, at+".secretRef"
	default:
		return
	}
	o, missing := c.object(ref, isTrue(optional))
	if missing != nil {
		c.blockOn(ctr.Name, at, missing)
		return
	}
	if o == nil {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(o.Data)) {
		name := from.Prefix + key
		if problems := validation.IsRelaxedEnvVarName(name); len(problems) > 0 {
			c.report.Remarks = append(c.report.Remarks, fmt.Sprintf("%s: %q is not a name for an environment variable, so it is left out", at, name))
			continue
		}
		env.set(name, string(o.Data[key]))
	}
}

func (c *compiler) valueFrom(ctr *v1.Container, v *v1.EnvVar, at string) (string, bool) {
	from := v.ValueFrom
	switch {
	case from.FieldRef != nil:
		value, err := c.field(from.FieldRef.FieldPath)
		if err != nil {
			c.block(ctr.Name, ConfigError, "%s.fieldRef: %v", at, err)
			return "", false
		}
		return value, true
	case from.ResourceFieldRef != nil:
		value, err := c.resource(ctr, from.ResourceFieldRef)
		if err != nil {
			c.block(ctr.Name, ConfigError, "%s.resourceFieldRef: %v", at, err)
			return "", false
		}
		return value, true
	case from.ConfigMapKeyRef != nil:
		r := from.ConfigMapKeyRef
		return c.key(ctr, Ref{ConfigMap, r.Name}, r.Key, isTrue(r.Optional), at+".configMapKeyRef")
	case from.SecretKeyRef != nil:
		r := from.SecretKeyRef
		return c.key(ctr, Ref{Secret, r.Name}, r.Key, isTrue(r.Optional), at+".secretKeyRef")
	case from.FileKeyRef != nil && isTrue(from.FileKeyRef.Optional):
		c.miss("%s.fileKeyRef", at)
	case from.FileKeyRef != nil:
		c.block(ctr.Name, ConfigError, "%s.fileKeyRef needs a legiond that runs as root, as volumes do: write the value into env, or mark it optional where the container can do without", at)
	}
	return "", false
}

// key is one value of an object.
func (c *compiler) key(ctr *v1.Container, ref Ref, key string, optional bool, at string) (string, bool) {
	o, missing := c.object(ref, optional)
	if missing != nil {
		c.blockOn(ctr.Name, at, missing)
		return "", false
	}
	if o == nil {
		return "", false
	}
	value, ok := o.Data[key]
	if !ok && !optional {
		c.block(ctr.Name, ConfigError, "%s: couldn't find key %s in %s %s/%s: add the key, and the container starts", at, key, ref.Kind, c.pod.Namespace, ref.Name)
	}
	return string(value), ok
}

// field is the downward API's fieldRef.
func (c *compiler) field(path string) (string, error) {
	switch path {
	case "spec.nodeName":
		return c.node.Name, nil
	case "spec.serviceAccountName":
		return c.pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.podIP", "status.hostIPs", "status.podIPs":
		return c.node.IP, nil
	}
	return fieldpath.ExtractFieldPathAsString(c.pod, path)
}

// resource is the downward API's resourceFieldRef; a limit that is not set is
// what the node can give.
func (c *compiler) resource(self *v1.Container, ref *v1.ResourceFieldSelector) (string, error) {
	ctr := self
	if ref.ContainerName != "" && ref.ContainerName != self.Name {
		ctr = nil
		for _, other := range Containers(c.pod) {
			if other.Name == ref.ContainerName {
				ctr = other
			}
		}
		if ctr == nil {
			return "", fmt.Errorf("the pod has no container %q", ref.ContainerName)
		}
	}
	var q resource.Quantity
	name := v1.ResourceName("")
	switch ref.Resource {
	case "limits.cpu", "limits.memory", "limits.ephemeral-storage":
		name = v1.ResourceName(ref.Resource[len("limits."):])
		var ok bool
		if q, ok = ctr.Resources.Limits[name]; !ok {
			q = c.node.Allocatable[name]
		}
	case "requests.cpu", "requests.memory", "requests.ephemeral-storage":
		name = v1.ResourceName(ref.Resource[len("requests."):])
		q = ctr.Resources.Requests[name]
	default:
		return "", fmt.Errorf("resource %q is not known: use limits or requests of cpu, memory or ephemeral-storage", ref.Resource)
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == v1.ResourceCPU {
		return strconv.FormatInt(int64(math.Ceil(float64(q.MilliValue())/float64(divisor.MilliValue()))), 10), nil
	}
	return strconv.FormatInt(int64(math.Ceil(float64(q.Value())/float64(divisor.Value()))), 10), nil
}

func isTrue(b *bool) bool { return b != nil && *b }
