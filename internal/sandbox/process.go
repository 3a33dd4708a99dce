package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// What of a sandbox and of scheduling concerns the process itself. Everything is
// of this thread, which is the one that executes the daemon.

// Drops are the capabilities that the sandbox takes out of the bounding set.
func Drops(s *service.Sandbox) []string {
	var out []string
	add := func(want bool, names ...string) {
		if want {
			out = append(out, names...)
		}
	}
	add(s.PrivateDevices, "CAP_MKNOD", "CAP_SYS_RAWIO")
	add(s.ProtectKernelModules, "CAP_SYS_MODULE")
	add(s.ProtectKernelLogs, "CAP_SYSLOG")
	add(s.ProtectClock, "CAP_SYS_TIME", "CAP_WAKE_ALARM")
	return out
}

// bounding is the set to keep, nil for all.
func (s *Spec) bounding() *[]string {
	if s.Sandbox == nil {
		return s.Bounding
	}
	drops := Drops(s.Sandbox)
	if len(drops) == 0 {
		return s.Bounding
	}
	var keep []string
	if s.Bounding != nil {
		keep = slices.Clone(*s.Bounding)
	} else {
		for _, c := range capabilities {
			keep = append(keep, "CAP_"+c)
		}
	}
	keep = slices.DeleteFunc(keep, func(c string) bool { return slices.Contains(drops, c) })
	return &keep
}

// secureBits of capabilities(7).
var secureBits = map[string]int{
	"noroot": 1, "noroot-locked": 2, "no-setuid-fixup": 4, "no-setuid-fixup-locked": 8, "keep-caps": 16, "keep-caps-locked": 32,
}

func setSecureBits(names []string) error {
	n := 0
	for _, name := range names {
		n |= secureBits[name]
	}
	return unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(n), 0, 0, 0)
}

func setKeyring(mode string) error {
	if mode == "inherit" {
		return nil
	}
	// One without a name, which KeyctlJoinSessionKeyring cannot ask for.
	if err := errno(syscall.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)); err != nil {
		return err
	}
	if mode == "shared" {
		const link = 8
		_, err := unix.KeyctlInt(link, unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_SESSION_KEYRING, 0, 0)
		return err
	}
	return nil
}

func setPersonality(name string) error {
	return errno(syscall.RawSyscall(unix.SYS_PERSONALITY, uintptr(personality(name)), 0, 0))
}

var policies = map[string]int{"other": 0, "fifo": 1, "rr": 2, "batch": 3, "idle": 5}

func schedulingStages(c *service.Scheduling) []stage {
	var out []stage
	add := func(want bool, name string, code int, do func() error) {
		if want {
			out = append(out, stage{"set " + name, code, do})
		}
	}
	add(c.Policy != "" || c.ResetOnFork, "CPUSchedulingPolicy", CodeScheduler, func() error {
		policy := policies[c.Policy]
		if c.ResetOnFork {
			policy |= 0x40000000
		}
		priority := int32(c.Priority)
		return errno(syscall.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, uintptr(policy), uintptr(unsafe.Pointer(&priority))))
	})
	add(len(c.Affinity) > 0, "CPUAffinity", CodeAffinity, func() error {
		var set unix.CPUSet
		for _, n := range c.Affinity {
			set.Set(n)
		}
		return unix.SchedSetaffinity(0, &set)
	})
	add(c.IOClass != "" || c.IOPriority != nil, "IOSchedulingClass", CodeIOPriority, func() error {
		class, priority := map[string]int{"": 2, "none": 0, "realtime": 1, "best-effort": 2, "idle": 3}[c.IOClass], 4
		if c.IOPriority != nil {
			priority = *c.IOPriority
		}
		if class == 0 || class == 3 {
			priority = 0
		}
		return errno(syscall.RawSyscall(unix.SYS_IOPRIO_SET, 1, 0, uintptr(class<<13|priority)))
	})
	add(c.TimerSlack > 0, "TimerSlackNSec", CodeTimerSlack, func() error {
		return unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(c.TimerSlack), 0, 0, 0)
	})
	return out
}

func decimal(n int) string { return strconv.Itoa(n) }

// Machine is what a machine, or the container that legiond is in, can give.
type Machine struct {
	Mounts, Network, IPC, UTS, Filters bool
	// Users tries only where it is asked: it takes a process. nil is no.
	Users func() bool
}

// ThisMachine tries it, once, on a thread of its own.
var ThisMachine = sync.OnceValue(func() Machine {
	result := make(chan Machine)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread ends with its namespaces
		can := func(flag int) bool { return unix.Unshare(flag) == nil }
		m := Machine{
			Network: can(unix.CLONE_NEWNET), IPC: can(unix.CLONE_NEWIPC), UTS: can(unix.CLONE_NEWUTS),
			Mounts: can(unix.CLONE_NEWNS) && unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "") == nil,
		}
		action := kill
		_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
		m.Filters = e == 0 && len(tables) > 0
		m.Users = sync.OnceValue(userNamespaces)
		result <- m
	}()
	return <-result
})

// LeastOOM is the lowest OOM score that legiond may give: without
// CAP_SYS_RESOURCE it is its own (proc(5)).
var LeastOOM = sync.OnceValue(func() int {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return -1000
	}
	text, _ := os.ReadFile("/proc/self/oom_score_adj")
	own, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1000
	}
	return own
})

// Give leaves of a sandbox what the machine can give, and names the rest.
func (m Machine) Give(s *service.Sandbox) (*service.Sandbox, []string) {
	if s == nil {
		return nil, nil
	}
	given := *s
	var lost []string
	if hasMounts(s) && !m.Mounts {
		withoutMounts(&given)
		lost = append(lost, mountNames(s)+": there is no right to make a mount namespace here, so the service sees the file system as it is")
	}
	if why := m.refusesUsers(s); why != "" {
		given.PrivateUsers = ""
		lost = append(lost, "PrivateUsers=: "+why)
	}
	if s.PrivateNetwork && !m.Network {
		given.PrivateNetwork = false
		lost = append(lost, "PrivateNetwork=: there is no right to make a network namespace here")
	}
	if s.PrivateIPC && !m.IPC {
		given.PrivateIPC = false
		lost = append(lost, "PrivateIPC=: there is no right to make an IPC namespace here")
	}
	if s.ProtectHostname && !m.UTS {
		given.ProtectHostname = false
		lost = append(lost, "ProtectHostname=: there is no right to make a UTS namespace here")
	}
	if !m.Filters && len(programs(s)) > 0 {
		withoutFilters(&given)
		lost = append(lost, "the filters of system calls: the kernel has no seccomp, or Legion does not know the system calls of this architecture")
	}
	return &given, lost
}

func withoutMounts(s *service.Sandbox) {
	s.PrivateTmp, s.PrivateMounts, s.ProtectControlGroups = false, false, false
	s.ProtectSystem, s.ProtectHome, s.ProtectProc, s.ProcSubset, s.MountFlags, s.MountAPIVFS = "", "", "", "", "", false
	s.ReadWritePaths, s.ReadOnlyPaths, s.InaccessiblePaths, s.ExecPaths, s.NoExecPaths, s.Binds, s.TemporaryFileSystem = nil, nil, nil, nil, nil, nil, nil
	s.NoMounts = true
}

func withoutFilters(s *service.Sandbox) {
	s.RestrictNamespaces, s.RestrictRealtime, s.RestrictSUIDSGID, s.LockPersonality, s.MemoryDenyWriteExecute = nil, false, false, false, false
	s.RestrictAddressFamilies, s.SystemCallFilter, s.SystemCallArchitectures, s.SystemCalls = nil, nil, nil, nil
	s.NoFilters = true
}

// mountNames lists the directives that need a mount namespace.
func mountNames(s *service.Sandbox) string {
	out := ""
	add := func(want bool, name string) {
		if want && out != "" {
			out += ", "
		}
		if want {
			out += name + "="
		}
	}
	add(s.PrivateTmp, "PrivateTmp")
	add(s.PrivateDevices, "PrivateDevices")
	add(s.PrivateMounts || s.MountFlags != "" || s.MountAPIVFS, "PrivateMounts")
	add(s.ProtectSystem != "", "ProtectSystem")
	add(s.ProtectHome != "", "ProtectHome")
	add(s.ProtectControlGroups, "ProtectControlGroups")
	add(s.ProtectKernelModules, "ProtectKernelModules")
	add(s.ProtectKernelTunables, "ProtectKernelTunables")
	add(s.ProtectKernelLogs, "ProtectKernelLogs")
	add(s.ProtectProc != "", "ProtectProc")
	add(s.ProcSubset != "", "ProcSubset")
	add(len(s.ReadWritePaths) > 0, "ReadWritePaths")
	add(len(s.ReadOnlyPaths) > 0, "ReadOnlyPaths")
	add(len(s.InaccessiblePaths) > 0, "InaccessiblePaths")
	add(len(s.ExecPaths) > 0, "ExecPaths")
	add(len(s.NoExecPaths) > 0, "NoExecPaths")
	add(len(s.Binds) > 0, "BindPaths")
	add(len(s.TemporaryFileSystem) > 0, "TemporaryFileSystem")
	return out
}

// filtersFor are the programs in the kernel's form.
func (s *Spec) filtersFor() ([]unix.SockFprog, error) {
	if s.Sandbox == nil || s.Sandbox.NoFilters {
		return nil, nil
	}
	list, err := filters(programs(s.Sandbox))
	if err != nil {
		return nil, fmt.Errorf("make the filters of system calls: %w", err)
	}
	return list, nil
}

// Filtered says whether there is a filter of system calls.
func (s *Spec) Filtered() bool {
	return s.Sandbox != nil && !s.Sandbox.NoFilters && len(programs(s.Sandbox)) > 0
}
