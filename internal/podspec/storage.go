package podspec

import (
	"fmt"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Quota is how much of the node's disk a part of a pod may take.
type Quota struct {
	// Dirs are all that counts, Bytes how much they may hold.
	Dirs  []string
	Bytes int64
	// Message is what the pod ends with that takes more, in the kubelet's words
	// (pkg/kubelet/eviction/helpers.go).
	Message string
}

// Quotas are those of a pod, in the order in which the kubelet looks: its
// emptyDirs, the pod as a whole, its containers with their writable layers and
// logs. logs are the directories of the latter, by container.
func Quotas(pod *v1.Pod, node Node, logs map[string]string) []Quota {
	if !node.Root {
		return nil
	}
	var out []Quota
	var all []string
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.Medium != v1.StorageMediumDefault {
			continue // a tmpfs holds its own size
		}
		dir := VolumeDir(node.PodDir, string(pod.UID), v.Name)
		all = append(all, dir)
		if l := v.EmptyDir.SizeLimit; l != nil && l.Sign() > 0 {
			out = append(out, Quota{[]string{dir}, l.Value(), fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, l.String())})
		}
	}
	var each []Quota
	for _, ctr := range Containers(pod) {
		dirs := []string{}
		if dir := logs[ctr.Name]; dir != "" {
			dirs = append(dirs, dir)
		}
		if OCI(pod) {
			dirs = append(dirs, filepath.Join(node.PodDir, string(pod.UID), "containers", ctr.Name, "upper"))
		}
		all = append(all, dirs...)
		if l := ctr.Resources.Limits.StorageEphemeral(); !l.IsZero() {
			each = append(each, Quota{dirs, l.Value(), fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", ctr.Name, l.String())})
		}
	}
	if l, ok := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})[v1.ResourceEphemeralStorage]; ok && !l.IsZero() {
		out = append(out, Quota{all, l.Value(), fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", l.String())})
	}
	return append(out, each...)
}
