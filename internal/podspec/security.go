package podspec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// capabilities are those that the container may have: without a word in the
// manifest a process of the host keeps what its service manager has. nil is all.
func (c *compiler) capabilities(ctr *v1.Container, at string) *[]string {
	s := ctr.SecurityContext
	if s == nil || s.Capabilities == nil || isTrue(s.Privileged) || len(s.Capabilities.Add)+len(s.Capabilities.Drop) == 0 {
		return nil
	}
	names := func(list []v1.Capability, field string) []string {
		var out []string
		for _, name := range list {
			full := strings.ToUpper(string(name))
			if full != "ALL" && !strings.HasPrefix(full, "CAP_") {
				full = "CAP_" + full
			}
			if full == "ALL" {
				out = append(out, unitfile.Capabilities...)
			} else if slices.Contains(unitfile.Capabilities, full) {
				out = append(out, full)
			} else {
				c.block(ctr.Name, CreateError, "%s.securityContext.capabilities.%s: %q is no capability of Linux: see capabilities(7)", at, field, name)
			}
		}
		return out
	}
	add, drop := names(s.Capabilities.Add, "add"), names(s.Capabilities.Drop, "drop")
	dropAll := slices.Contains(s.Capabilities.Drop, "ALL") || slices.Contains(s.Capabilities.Drop, "all")
	keep := []string{}
	for _, name := range unitfile.Capabilities {
		// What is added by name stays, though all are dropped; what is dropped
		// by name goes, though all are added.
		if !slices.Contains(drop, name) || (dropAll && slices.Contains(add, name)) {
			keep = append(keep, name)
		}
	}
	if len(keep) == len(unitfile.Capabilities) {
		return nil
	}
	return &keep
}

// The kubelet's numbers (pkg/kubelet/qos/policy.go).
const (
	guaranteedOOM = -997
	bestEffortOOM = 1000
	nodeCritical  = 2000001000
)

// oomScore is how soon the kernel ends the container when memory is short: the
// more it asked for, the later. nil where the server has not said the class.
func (c *compiler) oomScore(ctr *v1.Container) *int {
	score := 0
	switch {
	case c.pod.Spec.Priority != nil && *c.pod.Spec.Priority >= nodeCritical, c.pod.Status.QOSClass == v1.PodQOSGuaranteed:
		score = guaranteedOOM
	case c.pod.Status.QOSClass == v1.PodQOSBestEffort:
		score = bestEffortOOM
	case c.pod.Status.QOSClass == v1.PodQOSBurstable:
		all := c.node.Allocatable.Memory().Value()
		if all <= 0 {
			return nil
		}
		score = int(bestEffortOOM - bestEffortOOM*ctr.Resources.Requests.Memory().Value()/all)
		score = min(max(score, bestEffortOOM+guaranteedOOM), bestEffortOOM-1)
	default:
		return nil
	}
	return &score
}

// hooks are the container's postStart and preStop.
func (c *compiler) hooks(ctr *v1.Container, at string, s *service.Service) {
	if ctr.Lifecycle == nil {
		return
	}
	if h := ctr.Lifecycle.PostStart; h != nil {
		if cmd := c.hook(ctr, h, at+".lifecycle.postStart"); cmd != nil {
			s.StartPost = []service.Command{*cmd}
		}
	}
	if h := ctr.Lifecycle.PreStop; h != nil {
		if cmd := c.hook(ctr, h, at+".lifecycle.preStop"); cmd != nil {
			cmd.IgnoreFailure = true
			s.Stop, s.StopAlive = []service.Command{*cmd}, true
		}
	}
	if name := ctr.Lifecycle.StopSignal; name != nil {
		if s.Kill.Signal = signalNumber(string(*name)); s.Kill.Signal == 0 {
			s.Kill.Signal = sigTERM
			c.miss("%s.lifecycle.stopSignal", at)
		}
	}
}

// signalNumber is Linux's of a name such as SIGUSR1 or SIGRTMIN+3; 0 for none.
func signalNumber(name string) int {
	least, most := 34, 64
	for base, from := range map[string]int{"SIGRTMIN": least, "SIGRTMAX": most} {
		if rest, ok := strings.CutPrefix(name, base); ok {
			n, err := strconv.Atoi(rest)
			if rest != "" && err != nil || from+n < least || from+n > most {
				return 0
			}
			return from + n
		}
	}
	return int(unix.SignalNum(name))
}

func (c *compiler) hook(ctr *v1.Container, h *v1.LifecycleHandler, at string) *service.Command {
	switch {
	case h.Exec != nil && len(h.Exec.Command) > 0:
		cmd := command(h.Exec.Command)
		return &cmd
	case h.Sleep != nil:
		cmd := command([]string{"sleep", strconv.FormatInt(h.Sleep.Seconds, 10)})
		return &cmd
	case h.HTTPGet != nil:
		// The kubelet is content with any answer (pkg/kubelet/lifecycle).
		get := c.http(ctr, h.HTTPGet, at+".httpGet")
		get.AnyStatus = true
		return &service.Command{Path: fmt.Sprintf("GET %s:%d%s", get.Host, get.Port, get.Path), HTTP: get}
	default:
		c.miss("%s", at)
	}
	return nil
}
