package promote_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/promote"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// testing.T and rapid.T.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

func unit(t tester, name, text string) promote.Unit {
	t.Helper()
	f, err := unitfile.Parse("/u/"+name, []byte(text))
	if err != nil {
		t.Fatalf("%v", err)
	}
	g, err := unitfile.Compile(name, f, nil, unitfile.Options{Root: true})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return promote.Unit{Group: g, Files: []*unitfile.File{f}}
}

func options() promote.Options {
	return promote.Options{
		User: func(name string) (promote.Account, error) {
			if name != "web" {
				return promote.Account{}, errors.New("this host has no such user")
			}
			return promote.Account{Name: "web", UID: 33, GID: 34, Groups: []int64{50}, Home: "/var/www"}, nil
		},
		Group: func(name string) (int64, error) {
			if n, ok := map[string]int64{"adm": 4, "tape": 26}[name]; ok {
				return n, nil
			}
			return 0, errors.New("this host has no such group")
		},
	}
}

// decoded is the object as the API reads it, strictly.
func decoded(t tester, r promote.Result) appsv1.DaemonSet {
	t.Helper()
	text, err := json.Marshal(r.Object)
	if err != nil {
		t.Fatalf("%v", err)
	}
	var ds appsv1.DaemonSet
	if err := yaml.UnmarshalStrict(text, &ds); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return ds
}

// back is the service that a node makes of the DaemonSet.
func back(t tester, r promote.Result) service.Service {
	t.Helper()
	ds := decoded(t, r)
	pod := &v1.Pod{ObjectMeta: ds.Spec.Template.ObjectMeta, Spec: ds.Spec.Template.Spec}
	pod.Namespace, pod.Name, pod.UID = "default", "p", "1"
	g, report := podspec.Compile(pod, podspec.Node{Name: "n1", IP: "10.0.0.7", Root: true, PodDir: "/pods"}, nil)
	if len(report.Blocked)+len(report.NotHonoured) > 0 {
		t.Fatalf("a node would not run it: %+v", report)
	}
	return g.Services[0]
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct{ unit, text, want string }{
		"oneshot":      {"a.service", "[Service]\nType=oneshot\nExecStart=/bin/true", "Type=oneshot"},
		"dynamic user": {"a.service", "[Service]\nDynamicUser=yes\nExecStart=/bin/true", "DynamicUser=yes"},
		"user":         {"a.service", "[Service]\nUser=nobodyhere\nExecStart=/bin/true", "User=nobodyhere: this host has no such user"},
		"group":        {"a.service", "[Service]\nGroup=none\nExecStart=/bin/true", "group none: this host has no such group"},
		"timer":        {"a.timer", "[Timer]\nOnCalendar=daily", "a.timer is no service"},
		"socket":       {"a.socket", "[Socket]\nListenStream=/run/a", "a.socket is no service"},
		"name":         {strings.Repeat("-", 9) + ".service", "[Service]\nExecStart=/bin/true", "give --name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := promote.DaemonSet(unit(t, c.unit, c.text), options())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestLists(t *testing.T) {
	r, err := promote.DaemonSet(unit(t, "getty@tty-1.service", `[Unit]
Description=One
After=network.target
[Service]
ExecStart=/bin/sleep $N
EnvironmentFile=-/etc/default/%p
KillMode=mixed
KillMode=bogus
IPAddressDeny=any
IPAddressDeny=none
StartLimitBurst=3
SyslogIdentifier=x
X-Mine=1
[Install]
WantedBy=multi-user.target
`), options())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"ExecStart=/bin/sleep $N", "EnvironmentFile=-/etc/default/getty", "KillMode=mixed"}; !slices.Equal(r.Carried, want) {
		t.Errorf("carried %q", r.Carried)
	}
	var left []string
	for _, l := range r.LeftOut {
		directive, _, _ := strings.Cut(l, ": ")
		left = append(left, directive)
	}
	if want := []string{"After=network.target", "KillMode=bogus", "IPAddressDeny=any", "IPAddressDeny=none", "StartLimitBurst=3"}; !slices.Equal(left, want) {
		t.Errorf("left out %q", r.LeftOut)
	}
	ds := decoded(t, r)
	if ds.Name != "getty-tty-1" || ds.Annotations["kubernetes.io/description"] != "One" || ds.Spec.Selector.MatchLabels["app.kubernetes.io/name"] != "getty-tty-1" {
		t.Errorf("%+v", ds)
	}
	if ds.Spec.Template.Annotations[podspec.UnitAnnotation+"getty-tty-1"] == "" {
		t.Errorf("annotations %v", ds.Spec.Template.Annotations)
	}
}

func TestDirectoriesOfRootAreVolumes(t *testing.T) {
	r, err := promote.DaemonSet(unit(t, "a.service", "[Service]\nExecStart=/bin/a\nStateDirectory=a b\nRuntimeDirectory=c\nRuntimeDirectoryMode=0700\n"), options())
	if err != nil {
		t.Fatal(err)
	}
	s := back(t, r)
	var targets []string
	for _, m := range s.Exec.Mounts {
		if m.Is == "DirectoryOrCreate" && m.Source == m.Target {
			targets = append(targets, m.Target)
		}
	}
	if !slices.Equal(targets, []string{"/var/lib/a", "/var/lib/b"}) || !slices.Contains(s.Exec.Environment, "STATE_DIRECTORY=/var/lib/a:/var/lib/b") {
		t.Errorf("%+v", s.Exec)
	}
	if want := []service.Directory{{Path: "c", Mode: 0o700}}; !reflect.DeepEqual(s.Exec.Runtime, want) {
		t.Errorf("runtime directories %+v", s.Exec.Runtime)
	}
}

// lines are directives of which each means the same on the way there and back.
var lines = []string{
	"Type=notify", "Type=forking\nPIDFile=/run/x.pid", "Type=exec", "NotifyAccess=all", "WatchdogSec=20",
	"User=web", "Group=adm", "SupplementaryGroups=tape adm", "UMask=0077", "Nice=5", "OOMScoreAdjust=-5",
	"ExecStartPre=-/bin/mkdir /run/%p", "ExecStartPre=+/bin/x\nExecStartPre=!/bin/y", "ExecReload=/bin/kill -HUP $MAINPID", "ExecStopPost=/bin/true", "ExecStop=/bin/stop ${MAINPID}",
	"Environment=A=1 \"B=$(A) $$ %%\"", "Environment=A=2", "EnvironmentFile=-/etc/default/%N",
	"WorkingDirectory=/srv", "WorkingDirectory=-/srv", "LimitNOFILE=1024:4096", "LimitCORE=infinity",
	"MemoryMax=64M", "MemoryMax=10%", "CPUQuota=150%", "CPUQuota=0.05%", "TasksMax=50", "CPUWeight=20",
	"Restart=always", "Restart=on-failure", "RestartSec=3", "RestartSteps=4\nRestartMaxDelaySec=1min", "SuccessExitStatus=3 SIGUSR1", "RestartPreventExitStatus=7",
	"TimeoutStopSec=7", "TimeoutStopSec=1min 30s", "TimeoutStartSec=11", "RuntimeMaxSec=1h",
	"KillMode=process", "KillSignal=SIGINT", "SendSIGHUP=yes", "SendSIGKILL=no",
	"NoNewPrivileges=yes", "CapabilityBoundingSet=CAP_CHOWN CAP_KILL", "CapabilityBoundingSet=", "CapabilityBoundingSet=~CAP_SYS_ADMIN", "AmbientCapabilities=CAP_CHOWN",
	"StateDirectory=x/y", "StateDirectoryMode=0750", "LogsDirectory=z", "RuntimeDirectory=%i\nRuntimeDirectoryPreserve=yes",
	"ProtectSystem=strict\nReadWritePaths=/var", "PrivateTmp=yes", "SystemCallFilter=@system-service", "CPUSchedulingPolicy=idle", "IgnoreSIGPIPE=no",
	"X-ReadinessProbe=http://:80/healthz?x=1\nX-ReadinessProbePeriodSec=2", "X-ReadinessProbe=tcp://10.0.0.1:80\nX-ReadinessProbeFailureThreshold=4",
	"X-ReadinessProbe=log:ready %i", "X-LivenessProbe=exec:/bin/check it\nX-LivenessProbeTimeoutSec=3", "X-LivenessProbe=exec:/bin/check $X\nX-LivenessProbeTimeoutSec=100ms",
	"StandardOutput=append:/var/log/x", "LoadCredential=a:/etc/a",
}

// TestThereAndBack: what a node makes of the DaemonSet is what the unit says.
func TestThereAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := rapid.SampledFrom([]string{"/bin/d --x %i", "/bin/d $OPTS", "-/bin/d", "@/bin/d argv0 -x", ":/bin/d $x", `/bin/d "two words" 100%%`, "+/bin/d"}).Draw(t, "start")
		picked := rapid.SliceOfNDistinct(rapid.SampledFrom(lines), 0, 12, rapid.ID).Draw(t, "lines")
		text := "[Service]\nExecStart=" + start + "\n" + strings.Join(picked, "\n") + "\n"
		u := unit(t, "ex@in-st.service", text)
		r, err := promote.DaemonSet(u, options())
		if err != nil {
			t.Fatalf("%v of\n%s", err, text)
		}
		if len(r.LeftOut) > 0 {
			t.Fatalf("left out %q", r.LeftOut)
		}
		want, got := view(u.Group.Services[0], true), view(back(t, r), false)
		for field, w := range want {
			if !reflect.DeepEqual(w, got[field]) {
				t.Fatalf("%s is %s, want %s, of\n%s", field, show(got[field]), show(w), text)
			}
		}
	})
}

func show(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}

// view is what of a service matters, in one form for both sides.
func view(s service.Service, unit bool) map[string]any {
	x := s.Exec
	env := map[string]string{}
	for _, e := range x.Environment {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	for _, name := range []string{"HOSTNAME", "HOME", "USER", "LOGNAME", "STATE_DIRECTORY", "LOGS_DIRECTORY", "RUNTIME_DIRECTORY"} {
		delete(env, name)
	}
	v := map[string]any{
		"commands": commands(s), "user": x.User, "group": x.Group, "groups": sorted(x.SupplementaryGroups), "env": env,
		"files": x.EnvironmentFiles, "umask": x.UMask, "rlimits": x.Rlimits, "nice": x.Nice, "oom": x.OOMScoreAdjust,
		"nnp": x.NoNewPrivileges, "bounds": bounds(x.CapabilityBoundingSet), "ambient": x.AmbientCapabilities,
		"sandbox": x.Sandbox, "scheduling": x.Scheduling, "sigpipe": x.IgnoreSIGPIPE, "credentials": x.Credentials, "stdout": x.StandardOutput,
		"workdir": []any{x.WorkingDirectory, x.WorkingDirectoryOptional}, "dirs": directories(s),
		"type": s.Type, "notify": s.NotifyAccess, "pidfile": s.PIDFile, "watchdog": s.Watchdog, "runtimemax": s.RuntimeMax,
		"stop": s.TimeoutStop, "success": s.SuccessStatus, "prevent": s.Restart.Prevent,
		"signal": s.Kill.Signal, "hup": s.Kill.SendSIGHUP, "nokill": s.Kill.NoSIGKILL,
		"readiness": asked(s.Readiness), "liveness": asked(s.Liveness), "resources": resources(s.Resources),
		"restart": s.Restart.Mode,
	}
	if s.Restart.Backoff == nil && s.Restart.Delay != 100*time.Millisecond {
		v["delay"] = []any{s.Restart.Delay, s.Restart.Steps, s.Restart.MaxDelay}
	}
	if s.Kill.Mode != "" && (unit || s.Kill.Mode != service.KillMixed) {
		v["killmode"] = s.Kill.Mode
	}
	if !unit {
		return v
	}
	// What Kubernetes has otherwise.
	if s.Type == service.Simple {
		v["type"] = service.Exec
	}
	if s.Restart.Mode == service.RestartNo {
		v["restart"] = service.RestartAlways
	}
	if s.Kill.Signal == 0 {
		v["signal"] = 15
	}
	if x.WorkingDirectory == "" {
		v["workdir"] = []any{"/", false}
	}
	var groups []string
	if x.User != "" {
		v["user"], v["group"], groups = "33", "34", []string{"50"}
	}
	if x.Group != "" {
		v["group"] = "4"
	}
	for _, g := range x.SupplementaryGroups {
		groups = append(groups, map[string]string{"adm": "4", "tape": "26"}[g])
	}
	v["groups"] = sorted(groups)
	return v
}

func sorted(list []string) []string {
	out := append([]string{}, list...)
	slices.Sort(out)
	return slices.Compact(out)
}

// commands without the prefix : where it makes no difference.
func commands(s service.Service) [][]service.Command {
	var out [][]service.Command
	for _, list := range [][]service.Command{s.StartPre, s.Start, s.StartPost, s.Reload, s.Stop, s.StopPost} {
		list = append([]service.Command{}, list...)
		for i := range list {
			list[i].NoExpand = list[i].NoExpand && strings.Contains(strings.Join(list[i].Argv, ""), "$")
		}
		out = append(out, list)
	}
	return out
}

func bounds(set *[]string) []string {
	if set == nil {
		return sorted(unitfile.Capabilities)
	}
	return sorted(*set)
}

// directories are those that are there when it runs, however they were said.
func directories(s service.Service) []string {
	var out []string
	for base, list := range map[string][]service.Directory{"/run": s.Exec.Runtime, "/var/lib": s.Exec.State, "/var/log": s.Exec.Logs} {
		for _, d := range list {
			if d.Mode == 0 {
				d.Mode = 0o755
			}
			out = append(out, fmt.Sprintf("%s/%s %o", base, d.Path, d.Mode))
		}
	}
	for _, m := range s.Exec.Mounts {
		if m.Is == "DirectoryOrCreate" {
			out = append(out, m.Target+" 755")
		}
	}
	return sorted(out)
}

func asked(p *service.Probe) any {
	if p == nil {
		return nil
	}
	q := *p
	q.SuccessThreshold = 0
	if q.HTTP != nil {
		h := *q.HTTP
		if h.Host == "" {
			h.Host = "127.0.0.1"
		}
		q.HTTP = &h
	}
	if q.Exec != nil {
		c := *q.Exec
		c.NoExpand = c.NoExpand && strings.Contains(strings.Join(c.Argv, ""), "$")
		q.Exec = &c
	}
	return q
}

// resources are what both sides may say; a container's swap is bounded with
// its memory.
func resources(l *service.Limits) service.Limits {
	if l == nil {
		return service.Limits{}
	}
	return service.Limits{MemoryMax: l.MemoryMax, CPUQuota: l.CPUQuota, TasksMax: l.TasksMax, CPUWeight: l.CPUWeight}
}
