package unitfile

import (
	"fmt"
	"slices"

	"legion.dev/legion/internal/service"
)

// actionRows are the directives of systemd.unit(5) that act on the machine,
// which older units have in [Service].
var actionRows = []row{
	{names: "FailureAction", set: action(func(a *service.Actions) *service.Action { return &a.Failure })},
	{names: "SuccessAction", set: action(func(a *service.Actions) *service.Action { return &a.Success })},
	{names: "StartLimitAction", set: action(func(a *service.Actions) *service.Action { return &a.StartLimit })},
	{names: "RebootArgument", set: text(func(c *compiler) *string { return &c.group.Actions.RebootArgument })},
}

// unitActionRows are those that only [Unit] has.
var unitActionRows = []row{
	{names: "FailureActionExitStatus", set: actionStatus(func(a *service.Actions) **int { return &a.FailureStatus })},
	{names: "SuccessActionExitStatus", set: actionStatus(func(a *service.Actions) **int { return &a.SuccessStatus })},
	{names: "JobTimeoutAction", set: action(func(a *service.Actions) *service.Action { return &a.JobTimeout })},
	{names: "JobTimeoutRebootArgument", set: text(func(c *compiler) *string { return &c.group.Actions.JobTimeoutArgument })},
}

// foreign are the actions of systemd that legiond has not.
var foreign = []string{"kexec", "kexec-force", "soft-reboot", "soft-reboot-force"}

func action(field func(*service.Actions) *service.Action) setter {
	set := oneOf(
		func(c *compiler) *service.Action { return field(&c.group.Actions) },
		service.NoAction, service.Reboot, service.RebootForce, service.RebootImmediate, service.PowerOff, service.PowerOffForce,
		service.PowerOffImmediate, service.ExitAction, service.ExitForce, service.Halt, service.HaltForce, service.HaltImmediate)
	return func(c *compiler, e Entry) error {
		if slices.Contains(foreign, e.Value) {
			return fmt.Errorf("legiond cannot do %s", e.Value)
		}
		return set(c, e)
	}
}

func actionStatus(field func(*service.Actions) **int) setter {
	set := integer(func(c *compiler) **int { return field(&c.group.Actions) }, 0, 255)
	return func(c *compiler, e Entry) error {
		if e.Value == "" {
			*field(&c.group.Actions) = nil
			return nil
		}
		return set(c, e)
	}
}

func onFailureIsolate(c *compiler, e Entry) error {
	isolate, err := ParseBool(e.Value)
	if err == nil {
		c.group.OnFailureMode = map[bool]service.JobMode{true: service.JobIsolate, false: service.JobReplace}[isolate]
	}
	return err
}
