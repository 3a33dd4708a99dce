package sandbox

import (
	"os"
	"os/exec"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// A program of several threads, as this one is, can neither make nor enter a
// user namespace (unshare(2), setns(2)): a process of PrivateUsers= is born in
// one. What only the host's root may do is done to it from outside, before it
// is told what to start (Privileged).

// userNamespaces tries whether a process can be born in a user namespace.
func userNamespaces() bool {
	c := exec.Command("/proc/self/exe")
	c.Args = []string{Argv0}
	c.SysProcAttr = &syscall.SysProcAttr{}
	Users("self", nil, c.SysProcAttr)
	// It finds no Spec, and so ends by itself.
	if c.Start() != nil {
		return false
	}
	_ = c.Wait()
	return true
}

// Users has a process be born in a user namespace with the mapping of
// systemd.exec(5), PrivateUsers=: root, the service's user and its groups are
// themselves, all others are nobody; or the first 65536, or all, are themselves.
func Users(mode string, as *Credential, sys *syscall.SysProcAttr) {
	sys.Cloneflags |= unix.CLONE_NEWUSER
	uid, gid := os.Geteuid(), os.Getegid()
	if uid != 0 {
		// Without rights, only oneself.
		sys.UidMappings, sys.GidMappings = same(uid), same(gid)
		return
	}
	sys.GidMappingsEnableSetgroups = true
	switch mode {
	case "identity":
		all := []syscall.SysProcIDMap{{Size: 1 << 16}}
		sys.UidMappings, sys.GidMappings = all, all
	case "full":
		// In two parts: one would look like the host's own namespace.
		all := []syscall.SysProcIDMap{{Size: 1}, {ContainerID: 1, HostID: 1, Size: 1<<32 - 2}}
		sys.UidMappings, sys.GidMappings = all, all
	default:
		uids, gids := []int{0}, []int{0}
		if as != nil {
			uids, gids = append(uids, int(as.UID)), append(gids, int(as.GID))
			for _, g := range as.Groups {
				gids = append(gids, int(g))
			}
		}
		sys.UidMappings, sys.GidMappings = same(uids...), same(gids...)
	}
}

// same maps each of the numbers to itself.
func same(ids ...int) []syscall.SysProcIDMap {
	slices.Sort(ids)
	var out []syscall.SysProcIDMap
	for _, id := range slices.Compact(ids) {
		out = append(out, syscall.SysProcIDMap{ContainerID: id, HostID: id, Size: 1})
	}
	return out
}

// refusesUsers says why the machine cannot give PrivateUsers=; empty where it
// can, or need not.
func (m Machine) refusesUsers(s *service.Sandbox) string {
	switch {
	case s.PrivateUsers == "":
		return ""
	case m.Users == nil || !m.Users():
		return "there is no right to make a user namespace here"
	case m.Mounts && !s.NoMounts && (s.ProtectProc != "" || s.ProcSubset != ""):
		return "the kernel does not let a user namespace mount the host's /proc anew, which ProtectProc= and ProcSubset= need"
	}
	return ""
}

// Privileged does to a process that was born in a user namespace what needs the
// rights of the host. What fails is tried by the process itself once more, and
// told by it.
func Privileged(pid int, s *Spec) {
	for name, l := range s.Rlimits {
		if resource, ok := resources[name]; ok {
			_ = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}, nil)
		}
	}
	if s.Nice != nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, pid, *s.Nice)
	}
	if s.OOMScoreAdjust != nil {
		_ = os.WriteFile("/proc/"+decimal(pid)+"/oom_score_adj", []byte(decimal(*s.OOMScoreAdjust)), 0)
	}
}
