package podspec

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// always are the calls that RuntimeDefault refuses to every container: what OCI
// runtimes refuse by default (Docker's and containerd's documents).
const always = "~@obsolete @swap add_key keyctl request_key kexec_load kexec_file_load pivot_root userfaultfd"

// unless are those that it refuses to one without the capability.
var unless = []struct{ capability, calls string }{
	{"CAP_BPF", "bpf"},
	{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
	{"CAP_PERFMON", "perf_event_open"},
	{"CAP_SYS_ADMIN", "fanotify_init fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree quotactl quotactl_fd setdomainname sethostname umount2"},
	{"CAP_SYS_BOOT", "reboot"},
	{"CAP_SYS_CHROOT", "chroot"},
	{"CAP_SYS_MODULE", "@module"},
	{"CAP_SYS_NICE", "mbind set_mempolicy"},
	{"CAP_SYS_PACCT", "acct"},
	{"CAP_SYS_RAWIO", "ioperm iopl"},
	{"CAP_SYS_TIME", "clock_settime settimeofday"},
	{"CAP_SYS_TTY_CONFIG", "vhangup"},
	{"CAP_SYSLOG", "syslog"},
}

// Profiles are the seccomp profiles of the node that a pod names.
func Profiles(pod *v1.Pod) []string {
	var out []string
	all := Containers(pod)
	for _, ctr := range Ephemeral(pod) {
		all = append(all, &ctr)
	}
	for _, ctr := range all {
		if p := ocispec.SeccompOf(pod, ctr); p != nil && p.LocalhostProfile != nil && !slices.Contains(out, *p.LocalhostProfile) {
			out = append(out, *p.LocalhostProfile)
		}
	}
	return out
}

// profile is the node's profile that a container names.
func (c *compiler) profile(ctr *v1.Container) ocispec.Profile {
	if p := ocispec.SeccompOf(c.pod, ctr); p != nil && p.LocalhostProfile != nil {
		return c.node.Profiles[*p.LocalhostProfile]
	}
	return ocispec.Profile{}
}

// seccomp is the filter of the container's seccompProfile, or else the pod's. A
// container of an image has it of its runtime (ocispec.Contain).
func (c *compiler) seccomp(ctr *v1.Container, exec *service.ExecContext) {
	profile := ocispec.SeccompOf(c.pod, ctr)
	switch {
	case profile == nil || OCI(c.pod):
	case profile.Type == v1.SeccompProfileTypeLocalhost:
		c.localhost(ctr, exec)
	default:
		runtimeDefault(exec)
	}
}

// localhost is the filter of a profile of the node.
func (c *compiler) localhost(ctr *v1.Container, exec *service.ExecContext) {
	p := c.profile(ctr)
	err := p.Err
	var profile *specs.LinuxSeccomp
	if err == nil {
		profile, err = ocispec.LoadProfile(p.Text, bounding(exec))
	}
	var filter *service.CallFilter
	if err == nil && profile != nil {
		filter, err = callFilter(profile)
	}
	switch {
	case err != nil:
		c.block(ctr.Name, CreateError, "cannot load seccomp profile %q: %v", p.Path, err)
	case filter != nil:
		exec.Sandbox = &service.Sandbox{SystemCalls: filter}
	}
}

// bounding are the capabilities that the process may have.
func bounding(exec *service.ExecContext) []string {
	if b := exec.CapabilityBoundingSet; b != nil {
		return *b
	}
	return unitfile.Capabilities
}

// runtimeDefault is the filter of RuntimeDefault.
func runtimeDefault(exec *service.ExecContext) {
	calls := []string{always}
	for _, u := range unless {
		if !slices.Contains(bounding(exec), u.capability) {
			calls = append(calls, u.calls)
		}
	}
	exec.Sandbox = &service.Sandbox{SystemCallFilter: []string{strings.Join(calls, " ")}, SystemCallErrorNumber: "EPERM"}
	if !slices.Contains(bounding(exec), "CAP_SYS_ADMIN") {
		exec.Sandbox.RestrictNamespaces = &[]string{}
	}
}

// callFilter is a profile of the runtime-spec in the kernel's numbers.
func callFilter(p *specs.LinuxSeccomp) (*service.CallFilter, error) {
	standard, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	f := &service.CallFilter{
		Default:   standard,
		Secondary: slices.ContainsFunc(p.Architectures, func(a specs.Arch) bool { return a == specs.ArchX86 || a == specs.ArchARM }),
	}
	for _, call := range p.Syscalls {
		rule := service.CallRule{Calls: call.Names}
		if rule.Do, err = action(call.Action, call.ErrnoRet); err != nil {
			return nil, err
		}
		for _, arg := range call.Args {
			is, ok := operators[arg.Op]
			if !ok || arg.Index > 5 {
				return nil, fmt.Errorf("the condition %q on argument %d of %s is not understood", arg.Op, arg.Index, strings.Join(call.Names, ", "))
			}
			c := service.CallCondition{Arg: int(arg.Index), Is: is, Value: arg.Value}
			if is == "&" { // the first value is the mask
				c.Mask, c.Value = arg.Value, arg.ValueTwo
			}
			rule.Where = append(rule.Where, c)
		}
		f.Rules = append(f.Rules, rule)
	}
	return f, nil
}

var operators = map[specs.LinuxSeccompOperator]string{
	specs.OpNotEqual: "!=", specs.OpLessThan: "<", specs.OpLessEqual: "<=", specs.OpEqualTo: "==",
	specs.OpGreaterEqual: ">=", specs.OpGreaterThan: ">", specs.OpMaskedEqual: "&",
}

// action is the kernel's number (seccomp(2)).
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	number := uint32(unix.EPERM)
	if errno != nil {
		number = uint32(*errno)
	}
	number &= unix.SECCOMP_RET_DATA
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | number, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | number, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("the action %q is not understood", a)
}
