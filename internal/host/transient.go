package host

import "legion.dev/legion/internal/service"

// transientKey marks a group that is forgotten once it has ended: "success" if
// it did not fail, "always" in any case (CollectMode= of systemd.unit(5)).
const transientKey = "legion.dev/transient"

// spent says whether a transient group has done what it was made for.
func (g *group) spent() bool {
	mode := g.spec.Annotations[transientKey]
	if mode != "success" && mode != "always" || g.unit {
		return false
	}
	ran := false
	for _, u := range g.services {
		ran = ran || u.in.Run > 0
		if u.in.State != service.Dead && (u.in.State != service.Failed || mode == "success") {
			return false
		}
	}
	return ran
}
