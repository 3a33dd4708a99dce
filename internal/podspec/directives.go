package podspec

import (
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// UnitAnnotation, with a container's name behind it, holds directives of
// [Service] for what a pod has no field for; `legion promote` writes it.
const UnitAnnotation = "unit.legion.dev/"

// directives lays a container's annotation over its service.
func (c *compiler) directives(ctr *v1.Container, s *service.Service) {
	key := UnitAnnotation + ctr.Name
	text, ok := c.pod.Annotations[key]
	if !ok {
		return
	}
	if OCI(c.pod) {
		c.miss("metadata.annotations[%s]", key)
		return
	}
	if c.nonRoot(ctr) {
		c.block(ctr.Name, ConfigError, "annotation %s: directives may act as root, which runAsNonRoot rules out: take the annotation away, or runAsNonRoot", key)
		return
	}
	f, err := unitfile.Parse("annotation "+key, []byte("[Service]\n"+text))
	if err != nil {
		c.block(ctr.Name, ConfigError, "%v", err)
		return
	}
	for _, e := range f.Entries {
		if e.Key == "ExecStart" && len(ctr.Command)+len(ctr.Args) > 0 {
			c.block(ctr.Name, ConfigError, "annotation %s: ExecStart= and the container's command or args are both set: there is one command; leave one of them out", key)
			return
		}
	}
	for i := range f.Entries {
		f.Entries[i].Line-- // the section's line is not the user's
	}
	over, err := unitfile.Overlay(*s, f, unitfile.Options{Root: c.node.Root})
	if err != nil {
		c.block(ctr.Name, ConfigError, "%v", err)
		return
	}
	*s = over
}

// nonRoot is the container's runAsNonRoot, the pod's where it has none.
func (c *compiler) nonRoot(ctr *v1.Container) bool {
	if s := ctr.SecurityContext; s != nil && s.RunAsNonRoot != nil {
		return *s.RunAsNonRoot
	}
	p := c.pod.Spec.SecurityContext
	return p != nil && isTrue(p.RunAsNonRoot)
}
