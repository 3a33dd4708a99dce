package runner

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// inside runs a shell in the context and returns what it says.
func inside(t *testing.T, c service.ExecContext, script string) string {
	t.Helper()
	q := shell(script)
	q.Context, q.Group = &c, "sandbox-test"
	t.Cleanup(func() { _ = RemovePrivateTmp(q.Group, q.Service) })
	exit, out, err := shared.Output(t.Context(), q, 64<<10)
	if err != nil {
		t.Fatalf("%v; it said %q", err, out)
	}
	if exit.Signal != 0 {
		return "killed by signal " + strings.TrimSpace(string(out))
	}
	return strings.TrimSpace(string(out))
}

func asRoot(t *testing.T) {
	t.Helper()
	if m := sandbox.ThisMachine(); !m.Mounts || !m.Network || !m.UTS || !m.IPC || !m.Filters || os.Geteuid() != 0 {
		t.Skipf("this machine gives only %+v", m)
	}
}

func list(words ...string) *[]string { return &words }

// TestSandbox shows each directive's effect from inside of the process: each
// script prints what it was able to do.
func TestSandbox(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"ro/rw", "hidden", "bound", "empty", "there"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"hidden/file", "bound/file", "secret", "there/file"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("content\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\necho ran\n"
	if err := os.WriteFile(filepath.Join(dir, "there/run"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	try := func(what string) string { return "(" + what + ") 2>/dev/null && echo yes || echo no; " }
	type box = service.Sandbox
	for name, test := range map[string]struct {
		box    box
		script string
		want   string
	}{
		"PrivateTmp":         {box{PrivateTmp: true}, "ls -A /tmp /var/tmp; touch /tmp/here && stat -c %a /tmp", "/tmp:\n\n/var/tmp:\n1777"},
		"ProtectSystem=yes":  {box{ProtectSystem: "yes"}, try("touch /usr/x") + try("touch -c /etc/hosts"), "no\nyes"},
		"ProtectSystem=full": {box{ProtectSystem: "full"}, try("touch /etc/x"), "no"},
		"ProtectSystem=strict": {
			box{ProtectSystem: "strict", ReadWritePaths: []string{dir + "/ro/rw"}},
			try("touch "+dir+"/ro/x") + try("touch "+dir+"/ro/rw/x") + try("echo >/dev/null") + try("touch /x"), "no\nyes\nyes\nno",
		},
		"ProtectHome=yes":       {box{ProtectHome: "yes"}, "ls -A /root /home | grep -v :; stat -c %a /root", "0"},
		"ProtectHome=read-only": {box{ProtectHome: "read-only"}, try("touch /root/x"), "no"},
		"ProtectHome=tmpfs":     {box{ProtectHome: "tmpfs"}, "stat -f -c %T /root; ls -A /root;" + try("touch /root/x"), "tmpfs\nno"},
		"ReadOnlyPaths": {
			box{ReadOnlyPaths: []string{dir + "/ro", "-" + dir + "/missing"}, ReadWritePaths: []string{dir + "/ro/rw"}},
			try("touch "+dir+"/ro/x") + try("touch "+dir+"/ro/rw/x"), "no\nyes",
		},
		"InaccessiblePaths": {
			box{InaccessiblePaths: []string{dir + "/hidden", dir + "/secret"}},
			"ls " + dir + "/hidden; " + try("cat "+dir+"/secret"), "no",
		},
		"NoExecPaths": {box{NoExecPaths: []string{dir}, ExecPaths: []string{dir + "/ro"}}, try(dir + "/there/run"), "no"},
		"ExecPaths":   {box{NoExecPaths: []string{dir}, ExecPaths: []string{dir + "/there"}}, dir + "/there/run", "ran"},
		"BindPaths": {
			box{Binds: []service.Bind{{Source: dir + "/bound", Target: dir + "/empty"}, {Source: dir + "/bound", Target: dir + "/there", ReadOnly: true}, {Source: "/missing", Target: dir + "/m", Optional: true}}},
			"cat " + dir + "/empty/file;" + try("touch "+dir+"/empty/x") + try("touch "+dir+"/there/x"), "content\nyes\nno",
		},
		"TemporaryFileSystem": {box{TemporaryFileSystem: []string{dir + "/there:ro"}}, "ls " + dir + "/there;" + try("touch "+dir+"/there/x"), "no"},
		"PrivateDevices": {
			box{PrivateDevices: true},
			"ls /dev | tr '\\n' ' '; echo; echo x >/dev/null; head -c 1 /dev/zero | wc -c;" + try("mknod /tmp/legion-test-node b 1 1") + try("touch /dev/x"),
			"",
		},
		"PrivateNetwork":        {box{PrivateNetwork: true}, "tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; cat /sys/class/net/lo/flags 2>/dev/null >/dev/null; true", "lo"},
		"PrivateIPC":            {box{PrivateIPC: true}, `test "$(readlink /proc/self/ns/ipc)" != "` + namespace(t, "ipc") + `" && echo own`, "own"},
		"ProtectKernelTunables": {box{ProtectKernelTunables: true}, try("echo x >/proc/sys/kernel/core_pattern") + try("cat /proc/kallsyms"), "no\nno"},
		"ProtectKernelModules":  {box{ProtectKernelModules: true}, "ls -A /usr/lib/modules 2>/dev/null; grep CapBnd /proc/self/status | cut -c 17- | tail -c 6", ""},
		"ProtectKernelLogs":     {box{ProtectKernelLogs: true}, try("dmesg") + try("head -c 1 /dev/kmsg"), "no\nno"},
		"ProtectControlGroups":  {box{ProtectControlGroups: true}, try("mkdir /sys/fs/cgroup/unified/legion-test-x"), "no"},
		"ProtectHostname":       {box{ProtectHostname: true}, `test "$(readlink /proc/self/ns/uts)" != "` + namespace(t, "uts") + `" && echo own;` + try("hostname other"), "own\nno"},
		"ProtectProc":           {box{ProtectProc: "invisible", ProcSubset: "pid"}, try("cat /proc/meminfo") + "grep -c hidepid /proc/self/mountinfo", "no\n1"},
		"RestrictNamespaces":    {box{RestrictNamespaces: list("uts")}, try("unshare -m true") + try("unshare -u true") + try("unshare -n true"), "no\nyes\nno"},
		"RestrictRealtime":      {box{RestrictRealtime: true}, try("chrt -f 1 true") + try("chrt -b 0 true"), "no\nyes"},
		"RestrictSUIDSGID":      {box{RestrictSUIDSGID: true}, try("chmod u+s "+dir+"/secret") + try("chmod 0600 "+dir+"/secret"), "no\nyes"},
		"LockPersonality":       {box{LockPersonality: true}, try("setarch linux32 true") + try("true"), "no\nyes"},
		"Personality":           {box{Personality: "x86"}, "uname -m", "i686"},
		"RestrictAddressFamilies": {
			box{RestrictAddressFamilies: list("AF_UNIX", "AF_NETLINK")},
			try(`python3 -c 'import socket; socket.socket(socket.AF_UNIX)'`) + try(`python3 -c 'import socket; socket.socket(socket.AF_INET)'`), "yes\nno",
		},
		"families denied": {
			box{RestrictAddressFamilies: list("AF_INET6", "AF_PACKET"), FamiliesDenied: true},
			try(`python3 -c 'import socket; socket.socket(socket.AF_INET)'`) + try(`python3 -c 'import socket; socket.socket(socket.AF_INET6)'`), "yes\nno",
		},
		"MemoryDenyWriteExecute": {
			box{MemoryDenyWriteExecute: true},
			try(`python3 -c 'import mmap; mmap.mmap(-1, 4096, prot=3)'`) + try(`python3 -c 'import mmap; mmap.mmap(-1, 4096, prot=7)'`), "yes\nno",
		},
		"SystemCallFilter": {
			box{SystemCallFilter: []string{"@system-service", "~@resources"}, SystemCallErrorNumber: "EPERM"},
			try("nice -n 5 true && chrt -b 0 true") + try("mount -t tmpfs x "+dir+"/empty") + try("true"), "no\nno\nyes",
		},
		"SystemCallFilter denies": {
			box{SystemCallFilter: []string{"~mkdir mkdirat:ENOENT"}, SystemCallErrorNumber: "EACCES"},
			"mkdir " + dir + "/new 2>&1 | sed 's/.*: //'", "Permission denied",
		},
		"SystemCallFilter kills":  {box{SystemCallFilter: []string{"~mkdir mkdirat"}}, "mkdir " + dir + "/new 2>/dev/null; echo $?", "159"},
		"SystemCallArchitectures": {box{SystemCallArchitectures: []string{"native"}}, "echo fine", "fine"},
		// The first filter may forbid to install the second.
		"SystemCallFilter and others": {
			box{SystemCallFilter: []string{"@system-service", "~@privileged @resources"}, SystemCallArchitectures: []string{"native"}}, "echo fine", "fine",
		},
		"SecureBits":  {box{SecureBits: []string{"noroot"}}, "grep CapEff /proc/self/status | cut -f2", "0000000000000000"},
		"KeyringMode": {box{KeyringMode: "private"}, "echo fine", "fine"},
	} {
		t.Run(name, func(t *testing.T) {
			got := inside(t, service.ExecContext{Sandbox: &test.box}, test.script)
			switch name {
			case "PrivateDevices":
				if !strings.HasSuffix(got, "1\nno\nno") || strings.Contains(got, "kmsg") || !strings.Contains(got, "urandom") {
					t.Errorf("%q", got)
				}
			case "ProtectKernelModules":
				if strings.Contains(got, "kernel") || len(got) > 6 {
					t.Errorf("%q", got)
				}
			default:
				if got != test.want {
					t.Errorf("it said %q, want %q", got, test.want)
				}
			}
		})
	}
}

func namespace(t *testing.T, kind string) string {
	t.Helper()
	name, err := os.Readlink("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestPrivateUsers: root and the service's own user are themselves, others are
// nobody; what the host's root gives is there nevertheless, its rights are not.
func TestPrivateUsers(t *testing.T) {
	asRoot(t)
	if !sandbox.ThisMachine().Users() {
		t.Skip("this machine gives no user namespaces")
	}
	maps := `awk '{print $1, $2, $3}' /proc/self/uid_map; `
	for name, test := range map[string]struct {
		c            service.ExecContext
		script, want string
	}{
		"root": {service.ExecContext{Sandbox: &service.Sandbox{PrivateUsers: "self"}}, maps + "id -u; grep CapEff /proc/self/status | cut -f2 | tr -d 0; dmesg 2>/dev/null || echo refused", "0 0 1\n0\n1ffffffffff\nrefused"},
		"a user": {
			service.ExecContext{User: "64321", Group: "64322", SupplementaryGroups: []string{"64323"}, Sandbox: &service.Sandbox{PrivateUsers: "self"}},
			maps + "id -u; id -G; grep CapEff /proc/self/status | cut -f2", "0 0 1\n64321 64321 1\n64321\n64322 64323\n0000000000000000",
		},
		"identity": {service.ExecContext{Sandbox: &service.Sandbox{PrivateUsers: "identity"}}, maps, "0 0 65536"},
		"full":     {service.ExecContext{Sandbox: &service.Sandbox{PrivateUsers: "full"}}, maps, "0 0 1\n1 1 4294967294"},
		"with the other walls": {
			service.ExecContext{User: "64321", Sandbox: &service.Sandbox{
				PrivateUsers: "self", PrivateTmp: true, PrivateDevices: true, PrivateNetwork: true, PrivateIPC: true, ProtectSystem: "strict", ProtectHome: "yes", ProtectHostname: true,
				ProtectControlGroups: true, ProtectKernelModules: true, ProtectKernelTunables: true, ProtectKernelLogs: true,
				RestrictNamespaces: list(), SystemCallFilter: []string{"@system-service"}, MemoryDenyWriteExecute: true,
			}},
			"touch /tmp/x && ls /tmp; touch /x 2>/dev/null || echo read-only; echo x >/dev/null && tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "x\nread-only\nlo",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got := inside(t, test.c, test.script); got != test.want {
				t.Errorf("it said %q, want %q", got, test.want)
			}
			if lost := LostProtections(&test.c); len(lost) > 0 {
				t.Errorf("%q", lost)
			}
		})
	}
}

// TestPrivateUsersHaveLimits: a limit that only the host's root may set is the
// same with a user namespace as without.
func TestPrivateUsersHaveLimits(t *testing.T) {
	asRoot(t)
	of := func(x *service.Sandbox) string {
		c := service.ExecContext{
			User: "64321", Nice: new(-5), OOMScoreAdjust: new(-900), Sandbox: x,
			Rlimits: map[string]service.Rlimit{"MEMLOCK": {Soft: 1 << 30, Hard: 1 << 40}, "NOFILE": {Soft: 321, Hard: 432}},
		}
		return inside(t, c, "nice; cat /proc/self/oom_score_adj; grep -E 'locked|open files' /proc/self/limits")
	}
	without, with := of(nil), of(&service.Sandbox{PrivateUsers: "self"})
	if with != without || !strings.HasPrefix(with, "-5\n") || !strings.Contains(with, "321") {
		t.Errorf("%q, without a user namespace %q", with, without)
	}
}

// TestPrivateUsersLost: what does not go together is told, and the rest is given.
func TestPrivateUsersLost(t *testing.T) {
	asRoot(t)
	for _, c := range []service.ExecContext{
		{Sandbox: &service.Sandbox{PrivateUsers: "self", ProtectProc: "invisible"}},
		{Sandbox: &service.Sandbox{PrivateUsers: "self"}, Scheduling: &service.Scheduling{IOClass: "realtime"}},
	} {
		if lost := LostProtections(&c); len(lost) != 1 || !strings.HasPrefix(lost[0], "PrivateUsers=: ") {
			t.Errorf("%q", lost)
		}
		if got := inside(t, c, "readlink /proc/self/ns/user"); got != namespace(t, "user") {
			t.Errorf("it runs in %s", got)
		}
	}
	if _, lost := (sandbox.Machine{}).Give(&service.Sandbox{PrivateUsers: "self"}); len(lost) != 1 || !strings.Contains(lost[0], "no right to make a user namespace") {
		t.Errorf("%q", lost)
	}
}

// TestSandboxOfAnotherUser: a filter without the right to it brings
// NoNewPrivileges with it.
func TestSandboxOfAnotherUser(t *testing.T) {
	asRoot(t)
	c := service.ExecContext{User: "65534", Sandbox: &service.Sandbox{RestrictRealtime: true, ProtectSystem: "strict"}}
	got := inside(t, c, "id -u; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status | tr -d '\\t'; touch /tmp/x 2>/dev/null || echo read-only")
	if got != "65534\nNoNewPrivs:1\nSeccomp:2\nread-only" {
		t.Errorf("%q", got)
	}
}

// TestSandboxKeepsDirectories: what the service is given to write in stays so.
func TestSandboxKeepsDirectories(t *testing.T) {
	asRoot(t)
	dir := t.TempDir()
	q := shell("touch $STATE_DIRECTORY/x && ulimit -n")
	q.Dirs = BaseDirs{Runtime: dir, State: dir, Cache: dir, Logs: dir, Config: dir}
	q.Context = &service.ExecContext{
		State: []service.Directory{{Path: "state"}}, Rlimits: map[string]service.Rlimit{"NOFILE": {Soft: 321, Hard: 4321}},
		Sandbox: &service.Sandbox{ProtectSystem: "strict", SystemCallFilter: []string{"@system-service"}},
	}
	exit, out, err := shared.Output(t.Context(), q, 1000)
	if err != nil || exit.Code != 0 || strings.TrimSpace(string(out)) != "321" {
		t.Errorf("%+v %q %v", exit, out, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "state/x")); err != nil {
		t.Error(err)
	}
}

func TestScheduling(t *testing.T) {
	asRoot(t)
	seven := 7
	c := service.ExecContext{Scheduling: &service.Scheduling{
		Policy: "batch", Affinity: []int{0}, IOClass: "best-effort", IOPriority: &seven, TimerSlack: 123456,
	}}
	got := inside(t, c, "chrt -p $$ | head -1 | sed 's/.*: //'; grep Cpus_allowed_list /proc/$$/status | cut -f2; ionice -p $$; cat /proc/$$/timerslack_ns")
	if got != "SCHED_BATCH\n0\nbest-effort: prio 7\n123456" {
		t.Errorf("%q", got)
	}
}

// TestSandboxFailureIsNamed: what cannot be set up says which place it was.
func TestSandboxFailureIsNamed(t *testing.T) {
	asRoot(t)
	q := shell("true")
	q.Context = &service.ExecContext{Sandbox: &service.Sandbox{ReadOnlyPaths: []string{"/not/there"}}}
	_, err := shared.Start(q)
	if err == nil || !strings.Contains(err.Error(), `set up "/not/there" in the mount namespace: no such file`) {
		t.Errorf("%v", err)
	}
}

// TestOOMScoreBelowOnesOwn: where it may not be had, the service runs without
// it, and that is told.
func TestOOMScoreBelowOnesOwn(t *testing.T) {
	score := -900
	c := service.ExecContext{OOMScoreAdjust: &score}
	want, lost := "-900", 0
	if least := sandbox.LeastOOM(); least > score {
		want, lost = strconv.Itoa(least), 1
	}
	if got := inside(t, c, "cat /proc/self/oom_score_adj"); got != want {
		t.Errorf("the score is %s, want %s", got, want)
	}
	if told := LostProtections(&c); len(told) != lost {
		t.Errorf("%q", told)
	}
}

// TestLostProtections: a machine that gives nothing is told of.
func TestLostProtections(t *testing.T) {
	full := &service.Sandbox{
		PrivateTmp: true, ProtectSystem: "full", PrivateNetwork: true, PrivateIPC: true, ProtectHostname: true, SystemCallFilter: []string{"@system-service"},
	}
	given, lost := sandbox.Machine{}.Give(full)
	if len(lost) != 5 || !strings.Contains(lost[0], "PrivateTmp=, ProtectSystem=") || given.PrivateTmp || given.PrivateNetwork || given.SystemCallFilter != nil {
		t.Errorf("%+v %q", given, lost)
	}
	if !full.PrivateTmp {
		t.Error("the definition itself was changed")
	}
	if _, lost := (sandbox.Machine{Mounts: true, Network: true, IPC: true, UTS: true, Filters: true}).Give(full); len(lost) > 0 {
		t.Errorf("%q", lost)
	}
}

func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("from a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	q := shell(`cd "$CREDENTIALS_DIRECTORY" && head -c 100 *; echo; stat -c '%a %U' . a`)
	q.Dirs = BaseDirs{Runtime: dir, State: dir, Cache: dir, Logs: dir, Config: dir}
	q.Context = &service.ExecContext{Credentials: []service.Credential{
		{Name: "a", Source: secret},
		{Name: "a", Data: []byte("not this")},
		{Name: "b", Source: filepath.Join(dir, "missing")},
		{Name: "b", Data: []byte("set\nhere")},
	}}
	owner := "UNKNOWN"
	if os.Geteuid() == 0 {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		q.Context.User = "64321"
	}
	exit, out, err := shared.Output(t.Context(), q, 1000)
	text := string(out)
	if err != nil || exit.Code != 0 || !strings.Contains(text, "==> a <==\nfrom a file") || !strings.Contains(text, "==> b <==\nset\nhere") || !strings.Contains(text, "500 ") || !strings.Contains(text, "400 ") {
		t.Errorf("%+v %q %v", exit, text, err)
	}
	if os.Geteuid() == 0 && strings.Count(text, owner) != 2 {
		t.Errorf("they are not the user's: %q", text)
	}
	if err := RemoveCredentials(q.Group, q.Service, q.Dirs); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "credentials/t.service")); err == nil {
		t.Error("they are left")
	}
	q.Context.Credentials = q.Context.Credentials[2:3]
	if _, err := shared.Start(q); err == nil || !strings.Contains(err.Error(), `load credential "b"`) {
		t.Errorf("a missing one: %v", err)
	}
}

func TestDynamicUser(t *testing.T) {
	asRoot(t)
	a := accounts{dynamicDir: t.TempDir()}
	one, err := a.dynamic("legion-test-one")
	if err != nil || one.uid < firstDynamic || one.uid > lastDynamic || one.name != "legion-test-one" {
		t.Fatalf("%+v %v", one, err)
	}
	// Somebody else has the number that the name would get.
	file := filepath.Join(a.dynamicDir, strconv.Itoa(int(one.uid)))
	if err := os.WriteFile(file, []byte("other"), 0o644); err != nil {
		t.Fatal(err)
	}
	two, err := a.dynamic("legion-test-one")
	if err != nil || two.uid == one.uid {
		t.Errorf("%+v %v", two, err)
	}
	again, err := a.dynamic("legion-test-one")
	if err != nil || again != two {
		t.Errorf("%+v, then %+v, %v", two, again, err)
	}
	if root, err := a.dynamic("root"); err != nil || root.uid != 0 {
		t.Errorf("an account that exists: %+v %v", root, err)
	}
	if got := dynamicName("a.b@c.service"); got != "a_b" {
		t.Errorf("%q", got)
	}
}
