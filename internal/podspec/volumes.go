package podspec

import (
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"legion.dev/legion/internal/service"
)

// Volume is one whose files the agent writes.
type Volume struct {
	Name  string
	Files map[string]VolumeFile
	// Points are directories for what containers mount inside the volume, which
	// they see read-only.
	Points []string `json:",omitempty"`
	// User and Group are whose the files are, nil for root's.
	User, Group *int64
}

// VolumeFile is a file of a Volume: Data, or a token that is yet to be had.
type VolumeFile struct {
	Data  []byte
	Mode  fs.FileMode
	Token *Token
}

// Token is a service account's, bound to the pod.
type Token struct {
	Audience string
	// Seconds is how long it shall be good for.
	Seconds int64
}

// VolumeDir is where a pod's volume lies on the node.
func VolumeDir(base, uid, volume string) string {
	return filepath.Join(base, uid, "volumes", volume)
}

// Volumes gives the volumes that the agent writes before the pod runs, and
// again whenever an object changes. Those that lack something are left out.
func Volumes(pod *v1.Pod, node Node, objects Objects) []Volume {
	c := compiler{pod: pod, node: node, objects: objects}
	var out []Volume
	for i := range pod.Spec.Volumes {
		if files, written := c.files(&pod.Spec.Volumes[i], ""); written != nil && written.message == "" && written.reason == "" {
			group := c.fsGroup()
			name := pod.Spec.Volumes[i].Name
			out = append(out, Volume{Name: name, Files: files, Points: points(pod, name), User: c.fsUser(), Group: group})
		}
	}
	if files := c.etcFiles(); len(files) > 0 {
		out = append(out, Volume{Name: etcVolume, Files: files})
	}
	return out
}

// points are the mount points that containers have inside of a volume, as paths
// of the volume (the kubelet's MakeNestedMountpoints).
func points(pod *v1.Pod, volume string) []string {
	var out []string
	for _, ctr := range Containers(pod) {
		for i := range ctr.VolumeMounts {
			outer := &ctr.VolumeMounts[i]
			if outer.Name != volume || outer.SubPath != "" || outer.SubPathExpr != "" {
				continue
			}
			for j := range ctr.VolumeMounts {
				inner := path.Clean(ctr.VolumeMounts[j].MountPath)
				if below, ok := strings.CutPrefix(inner, path.Clean(outer.MountPath)+"/"); ok && !slices.Contains(out, below) {
					out = append(out, below)
				}
			}
		}
	}
	return out
}

func (c *compiler) fsGroup() *int64 {
	if p := c.pod.Spec.SecurityContext; p != nil {
		return p.FSGroup
	}
	return nil
}

// fsUser is the user of all containers, nil where they differ.
func (c *compiler) fsUser() *int64 {
	var user *int64
	for _, list := range [][]v1.Container{c.pod.Spec.InitContainers, c.pod.Spec.Containers} {
		for i := range list {
			var own *int64
			if p := c.pod.Spec.SecurityContext; p != nil {
				own = p.RunAsUser
			}
			if s := list[i].SecurityContext; s != nil && s.RunAsUser != nil {
				own = s.RunAsUser
			}
			if own == nil || (user != nil && *user != *own) {
				return nil
			}
			user = own
		}
	}
	return user
}

// files are those of a volume that the agent writes. The second result is nil
// where it writes none, and else says what is missing, empty for nothing.
func (c *compiler) files(v *v1.Volume, at string) (map[string]VolumeFile, *unready) {
	files := map[string]VolumeFile{}
	switch {
	case v.ConfigMap != nil:
		s := v.ConfigMap
		return files, c.fromObject(files, Ref{ConfigMap, s.Name}, s.Items, s.DefaultMode, isTrue(s.Optional))
	case v.Secret != nil:
		s := v.Secret
		return files, c.fromObject(files, Ref{Secret, s.SecretName}, s.Items, s.DefaultMode, isTrue(s.Optional))
	case v.DownwardAPI != nil:
		return files, c.fromPod(files, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode)
	case v.Projected == nil:
		return nil, nil
	}
	for i := range v.Projected.Sources {
		s, mode := &v.Projected.Sources[i], v.Projected.DefaultMode
		missing := &unready{}
		switch {
		case s.ConfigMap != nil:
			missing = c.fromObject(files, Ref{ConfigMap, s.ConfigMap.Name}, s.ConfigMap.Items, mode, isTrue(s.ConfigMap.Optional))
		case s.Secret != nil:
			missing = c.fromObject(files, Ref{Secret, s.Secret.Name}, s.Secret.Items, mode, isTrue(s.Secret.Optional))
		case s.DownwardAPI != nil:
			missing = c.fromPod(files, s.DownwardAPI.Items, mode)
		case s.ServiceAccountToken != nil:
			t := s.ServiceAccountToken
			seconds := int64(3600)
			if t.ExpirationSeconds != nil {
				seconds = *t.ExpirationSeconds
			}
			f := VolumeFile{Mode: c.mode(mode, nil), Token: &Token{Audience: t.Audience, Seconds: seconds}}
			if c.fsGroup() != nil {
				f.Mode = 0o640
			} else if c.fsUser() != nil {
				f.Mode = 0o600
			}
			files[t.Path] = f
		case at != "":
			c.miss("%s.projected.sources[%d]", at, i)
		}
		if missing.reason != "" || missing.message != "" {
			return files, missing
		}
	}
	return files, &unready{}
}

// mode is a file's; a pod with an fsGroup reads what it is given.
func (c *compiler) mode(whole, own *int32) fs.FileMode {
	mode := fs.FileMode(0o644)
	if whole != nil {
		mode = fs.FileMode(*whole)
	}
	if own != nil {
		mode = fs.FileMode(*own)
	}
	if c.fsGroup() != nil {
		mode |= 0o440
	}
	return mode & 0o777
}

// fromObject takes an object's values as files: all of them, or items.
func (c *compiler) fromObject(files map[string]VolumeFile, ref Ref, items []v1.KeyToPath, mode *int32, optional bool) *unready {
	o, missing := c.object(ref, optional)
	if missing != nil {
		missing.reason = Creating
		return missing
	}
	if o == nil {
		return &unready{}
	}
	value := func(key string) ([]byte, bool) {
		if data, ok := o.Data[key]; ok {
			return data, true
		}
		data, ok := o.Binary[key]
		return data, ok
	}
	if len(items) == 0 {
		for _, part := range []map[string][]byte{o.Data, o.Binary} {
			for key, data := range part {
				files[key] = VolumeFile{Data: data, Mode: c.mode(mode, nil)}
			}
		}
		return &unready{}
	}
	for _, item := range items {
		data, ok := value(item.Key)
		if !ok && optional {
			continue
		}
		if !ok {
			return &unready{Creating, fmt.Sprintf("%s %q references non-existent config key: %s", ref.Kind, ref.Name, item.Key)}
		}
		files[path.Clean(item.Path)] = VolumeFile{Data: data, Mode: c.mode(mode, item.Mode)}
	}
	return &unready{}
}

// fromPod is the downward API as files.
func (c *compiler) fromPod(files map[string]VolumeFile, items []v1.DownwardAPIVolumeFile, mode *int32) *unready {
	for i := range items {
		item := &items[i]
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = c.field(item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			value, err = c.resource(&v1.Container{}, item.ResourceFieldRef)
		}
		if err != nil {
			return &unready{Creating, fmt.Sprintf("downward API file %q: %v", item.Path, err)}
		}
		files[path.Clean(item.Path)] = VolumeFile{Data: []byte(value), Mode: c.mode(mode, item.Mode)}
	}
	return &unready{}
}

// volumes finds where each volume of the pod lies, and blocks the pod for one
// that lacks something.
func (c *compiler) volumes() {
	c.sources = map[string]*service.Mount{}
	for i := range c.pod.Spec.Volumes {
		v := &c.pod.Spec.Volumes[i]
		at := fmt.Sprintf("spec.volumes[%d]", i)
		m := &service.Mount{Source: VolumeDir(c.node.PodDir, string(c.pod.UID), v.Name)}
		_, written := c.files(v, at)
		switch {
		case written != nil && (written.reason != "" || written.message != ""):
			c.blockAll(v.Name, written.message)
			continue
		case written != nil:
			m.ReadOnly = true
		case v.HostPath != nil:
			m.Source, m.Is = v.HostPath.Path, anything
			if t := v.HostPath.Type; t != nil && *t != v1.HostPathUnset {
				m.Is = string(*t)
			}
		case v.EmptyDir != nil:
			c.emptyDir(v.EmptyDir, m, at)
		case v.Image != nil:
			c.imageVolume(v, m)
		default:
			c.miss("%s", at)
			continue
		}
		c.sources[v.Name] = m
	}
}

// anything is what a hostPath without a type leads to: nothing of it is checked,
// and where there is nothing a directory is made, as container runtimes do.
const anything = "OrCreate"

func (c *compiler) emptyDir(e *v1.EmptyDirVolumeSource, m *service.Mount, at string) {
	m.Is, m.Mode = "DirectoryOrCreate", 0o777
	if g := c.fsGroup(); g != nil {
		group := uint32(*g)
		m.Group, m.Mode = &group, 0o2777
	}
	switch e.Medium {
	case v1.StorageMediumDefault:
	case v1.StorageMediumMemory:
		m.Tmpfs = true
		if e.SizeLimit != nil {
			m.Size = e.SizeLimit.Value()
		}
	default:
		c.miss("%s.emptyDir.medium", at)
	}
}

// blockAll blocks every container because of a volume, in the kubelet's words.
func (c *compiler) blockAll(volume, message string) {
	if message != "" {
		message = fmt.Sprintf("MountVolume.SetUp failed for volume %q: %s", volume, message)
	}
	for _, ctr := range Containers(c.pod) {
		c.report.Blocked = append(c.report.Blocked, Blocked{ctr.Name, Creating, message})
	}
}

// mounts are a container's; its subPathExpr uses its environment.
func (c *compiler) mounts(ctr *v1.Container, at string, env *environment) []service.Mount {
	var out []service.Mount
	for i := range ctr.VolumeMounts {
		vm := &ctr.VolumeMounts[i]
		at := fmt.Sprintf("%s.volumeMounts[%d]", at, i)
		source := c.sources[vm.Name]
		if source == nil {
			if len(c.report.Blocked) == 0 {
				c.miss("%s", at)
			}
			continue
		}
		if !c.imageOfVolume(ctr, vm.Name) {
			continue
		}
		m := *source
		m.Target = path.Join("/", vm.MountPath)
		m.ReadOnly = m.ReadOnly || vm.ReadOnly
		m.Recursive = vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly != v1.RecursiveReadOnlyDisabled
		if p := vm.MountPropagation; p != nil {
			m.Propagation = map[v1.MountPropagationMode]string{v1.MountPropagationHostToContainer: "slave", v1.MountPropagationBidirectional: "shared"}[*p]
		}
		m.SubPath = vm.SubPath
		if vm.SubPathExpr != "" {
			value, ok := expandStrict(vm.SubPathExpr, env.values)
			if !ok || path.IsAbs(value) || strings.Contains(value, "\x00") || strings.Contains("/"+value+"/", "/../") {
				c.block(ctr.Name, ConfigError, "%s.subPathExpr %q cannot be made a path below the volume: each variable must be set, other than by a file, and none lead out of it", at, vm.SubPathExpr)
				continue
			}
			m.SubPath = value
		}
		if !OCI(c.pod) && path.Clean(m.Source) == m.Target && m.SubPath == "" && m.Is == anything && !m.ReadOnly && m.Propagation == "" {
			continue // it is there
		}
		out = append(out, m)
	}
	return out
}

// expandStrict expands $(NAME) and wants each to be set.
func expandStrict(text string, values map[string]string) (string, bool) {
	ok := true
	value := expansion.Expand(text, func(name string) string {
		v, set := values[name]
		ok = ok && set
		return v
	})
	return value, ok
}
