package cli

import (
	"cmp"
	"strconv"

	"legion.dev/legion/internal/service"
)

// actionProperties are what a unit brings about for the machine, and how it is
// asked for.
func actionProperties(g service.Group) []property {
	a := g.Actions
	status := func(n *int) string {
		if n == nil {
			return "-1"
		}
		return strconv.Itoa(*n)
	}
	return []property{
		{"FailureAction", string(cmp.Or(a.Failure, service.NoAction))},
		{"FailureActionExitStatus", status(a.FailureStatus)},
		{"SuccessAction", string(cmp.Or(a.Success, service.NoAction))},
		{"SuccessActionExitStatus", status(a.SuccessStatus)},
		{"StartLimitAction", string(cmp.Or(a.StartLimit, service.NoAction))},
		{"RebootArgument", a.RebootArgument},
		{"JobTimeoutAction", string(cmp.Or(a.JobTimeout, service.NoAction))},
		{"JobTimeoutRebootArgument", a.JobTimeoutArgument},
		{"OnFailureJobMode", string(cmp.Or(g.OnFailureMode, service.JobReplace))},
		{"OnSuccessJobMode", string(cmp.Or(g.OnSuccessMode, service.JobReplace))},
		{"AllowIsolate", yesNo(g.AllowIsolate)},
		{"IgnoreOnIsolate", yesNo(g.IgnoreOnIsolate)},
	}
}
