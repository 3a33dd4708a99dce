package host

import (
	"fmt"

	"legion.dev/legion/internal/condition"
)

// unfulfilled looks at the group's conditions (systemd.unit(5), "Conditions
// and Asserts"): skip is the condition for which the start is left out, failed
// the assertion for which it fails.
func (h *Host) unfulfilled(g *group) (skip, failed string) {
	anyTrigger, triggered := false, false
	for _, c := range g.spec.Conditions {
		holds := condition.Holds(c)
		if c.Trigger {
			anyTrigger = true
			triggered = triggered || holds
			continue
		}
		if holds {
			continue
		}
		not := ""
		if c.Negate {
			not = "!"
		}
		if c.Assert {
			return "", fmt.Sprintf("Assert%s=%s%s does not hold", c.Kind, not, c.Value)
		}
		return fmt.Sprintf("Condition%s=%s%s does not hold", c.Kind, not, c.Value), ""
	}
	if anyTrigger && !triggered {
		return "none of the conditions marked with | holds", ""
	}
	return "", ""
}
