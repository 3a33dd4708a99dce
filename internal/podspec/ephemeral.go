package podspec

import (
	"fmt"

	"legion.dev/legion/internal/service"
)

// ephemeral compiles the ephemeral containers that can run.
func (c *compiler) ephemeral() []service.Service {
	var out []service.Service
	blocked := c.report.Blocked
	for i, ctr := range Ephemeral(c.pod) {
		c.report.Blocked = nil
		at := fmt.Sprintf("spec.ephemeralContainers[%d]", i)
		c.target = c.pod.Spec.EphemeralContainers[i].TargetContainerName
		s := c.container(&ctr, at)
		if len(c.report.Blocked) > 0 {
			c.report.Ephemeral = append(c.report.Ephemeral, c.report.Blocked...)
			continue
		}
		s.Ephemeral, s.Restart = true, service.Restart{Mode: service.RestartNo}
		s.Stage = c.lastStage() // they stop with the containers, before the sidecars
		out = append(out, s)
	}
	c.report.Blocked, c.target = blocked, ""
	return out
}
