package podspec

import (
	"path/filepath"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/service"
)

// OCIRuntime is the runtimeClassName of pods that run images, as those without
// one do.
const OCIRuntime = "oci"

// Pulled is what is known of an image: the image, or why it is not there. With
// neither it is on its way.
type Pulled struct {
	Image           *ocispec.Image
	Reason, Message string
}

// OCI says whether a pod's containers are run from images.
func OCI(pod *v1.Pod) bool {
	class := pod.Spec.RuntimeClassName
	return class == nil || *class == "" || *class == OCIRuntime
}

// image gives a container's image. Where it is not there, it blocks the
// container; nil is also the answer for a process of the host.
func (c *compiler) image(ctr *v1.Container) *ocispec.Image {
	if !OCI(c.pod) {
		return nil
	}
	p := c.node.Images[ctr.Image]
	if p.Image == nil {
		c.awaitImage(ctr, p)
	}
	return p.Image
}

// awaitImage blocks a container for want of an image.
func (c *compiler) awaitImage(ctr *v1.Container, p Pulled) {
	if p.Reason == "" {
		p.Reason = Creating
	}
	c.report.Blocked = append(c.report.Blocked, Blocked{ctr.Name, p.Reason, p.Message})
}

// imageVolume shows an image's files where a volume lies.
func (c *compiler) imageVolume(v *v1.Volume, m *service.Mount) {
	m.Is, m.ReadOnly = "DirectoryOrCreate", true
	if image := c.node.VolumeImages[v.Name].Image; image != nil {
		m.Image = &service.ImageFiles{ID: image.ID, Layers: image.Layers}
	}
}

// imageOfVolume says whether a container can mount the volume: that of an image
// is mounted once the image is there.
func (c *compiler) imageOfVolume(ctr *v1.Container, name string) bool {
	for i := range c.pod.Spec.Volumes {
		if v := &c.pod.Spec.Volumes[i]; v.Name == name && v.Image != nil {
			p := c.node.VolumeImages[name]
			if p.Image == nil {
				c.awaitImage(ctr, p)
			}
			return p.Image != nil
		}
	}
	return true
}

// holdPIDs puts before the containers, which share a PID namespace, the service
// that holds it.
func (c *compiler) holdPIDs(g *service.Group) {
	if !OCI(c.pod) || !ocispec.SharesPIDs(c.pod) {
		return
	}
	holder, refusal := ocispec.Hold(c.pod, c.node.OCI, filepath.Join(c.node.PodDir, string(c.pod.UID)))
	if refusal != nil {
		c.block(c.pod.Spec.Containers[0].Name, CreateError, "%s", refusal.Message)
		return
	}
	for i := range g.Services {
		g.Services[i].Stage++
	}
	g.Services = append([]service.Service{holder}, g.Services...)
}

// contain makes a container's service one that an OCI runtime runs.
func (c *compiler) contain(ctr *v1.Container, s *service.Service) {
	image := c.image(ctr)
	if image == nil {
		return
	}
	refusal := ocispec.Contain(s, ocispec.Input{
		Pod: c.pod, Container: ctr, Image: image, Runtime: c.node.OCI, Node: c.node.Name, Domain: c.node.domain(), Seccomp: c.profile(ctr),
		PodDir: filepath.Join(c.node.PodDir, string(c.pod.UID)), Target: c.target,
	})
	switch {
	case refusal == nil:
		if c.report.Images == nil {
			c.report.Images = map[string]string{}
		}
		c.report.Images[ctr.Name] = image.Ref
	case refusal.Config:
		c.block(ctr.Name, ConfigError, "%s", refusal.Message)
	default:
		c.block(ctr.Name, CreateError, "%s", refusal.Message)
	}
}
