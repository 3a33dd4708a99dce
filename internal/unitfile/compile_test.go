package unitfile

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"legion.dev/legion/internal/service"
)

var rewrite = flag.Bool("rewrite", false, "write docs/UNITS.md anew")

// TestDirectivesOfDistribution holds the table against what 493 service files
// of Debian use: each directive has a row.
func TestDirectivesOfDistribution(t *testing.T) {
	for _, row := range table(t, "directives") {
		if Lookup(row["section"], row["directive"]) == nil {
			t.Errorf("%s= in [%s] has no row", row["directive"], row["section"])
		}
	}
}

func TestRowsAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range Directives {
		key := d.Section + "." + d.Name
		if seen[key] {
			t.Errorf("%s has two rows", key)
		}
		seen[key] = true
		if d.Honoured() == (d.Reason != "") {
			t.Errorf("%s is neither honoured nor has a reason, or both", key)
		}
	}
}

const everything = `
[Unit]
Description=The daemon of %i
Documentation=man:daemon(8)
After=network.target other.service
Wants=other.service
Requires=needed.service
ConditionPathExists=!/etc/not-to-be-run

[Service]
Type=notify
User=daemon
EnvironmentFile=-/etc/default/daemon
Environment=A=1 "B=two words"
ExecStartPre=-/usr/sbin/daemon -t
ExecStart=/usr/sbin/daemon -D $OPTS \
# a comment between
  --name=%n
ExecReload=/usr/sbin/daemon -t
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
Restart=on-failure
RestartSec=200ms
RestartSteps=5
RestartMaxDelaySec=1min
RestartPreventExitStatus=255 SIGKILL
RuntimeDirectory=daemon daemon/sub
RuntimeDirectoryMode=0750
TimeoutStopSec=5
LimitNOFILE=1024:4096
NetworkNamespacePath=/run/netns/x
Delegate=yes
RootImage=/x
Unknown=1
X-Ours=1

[X-Section]
Any=1

[Install]
WantedBy=multi-user.target
Alias=d.service
`

func compile(t *testing.T, name, content string) (service.Group, error) {
	t.Helper()
	f, err := Parse("/u/"+name, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	return Compile(name, f, nil, Options{Root: true})
}

func TestCompile(t *testing.T) {
	g, err := compile(t, "daemon@one.service", everything)
	if err != nil {
		t.Fatal(err)
	}
	s := g.Services[0]
	for what, ok := range map[string]bool{
		"description": g.Description == "The daemon of one",
		"after":       slices.Equal(g.Deps.After, []string{"network.target", "other.service"}),
		"requires":    slices.Equal(g.Deps.Requires, []string{"needed.service"}),
		"condition":   g.Conditions[0] == service.Condition{Kind: "PathExists", Value: "/etc/not-to-be-run", Negate: true},
		"type":        s.Type == service.Notify && s.NotifyAccess == service.NotifyMain,
		"argv":        slices.Equal(s.Start[0].Argv, []string{"/usr/sbin/daemon", "-D", "$OPTS", "--name=daemon@one.service"}),
		"pre":         s.StartPre[0].IgnoreFailure,
		"reload":      len(s.Reload) == 2,
		"environment": slices.Equal(s.Exec.Environment, []string{"A=1", "B=two words"}),
		"file":        s.Exec.EnvironmentFiles[0] == service.EnvironmentFile{Path: "/etc/default/daemon", Optional: true},
		"restart":     s.Restart.Delay == 200*time.Millisecond && s.Restart.Steps == 5 && s.Restart.MaxDelay == time.Minute,
		"prevent":     slices.Equal(s.Restart.Prevent.Codes, []int{255}) && slices.Equal(s.Restart.Prevent.Signals, []int{9}),
		"directories": len(s.Exec.Runtime) == 2 && s.Exec.Runtime[1].Path == "daemon/sub" && s.Exec.Runtime[0].Mode == 0o750,
		"timeouts":    s.TimeoutStart == 90*time.Second && s.TimeoutStop == 5*time.Second && s.TimeoutAbort == 5*time.Second,
		"limits":      s.Exec.Rlimits["NOFILE"] == service.Rlimit{Soft: 1024, Hard: 4096},
		"netns":       s.Exec.NetworkNamespacePath == "/run/netns/x" && s.Exec.Delegate,
		"start limit": g.StartLimit == service.StartLimit{Interval: 10 * time.Second, Burst: 5},
		"alias":       slices.Equal(g.Deps.Aliases, []string{"d.service"}),
	} {
		if !ok {
			t.Errorf("%s is wrong: %+v", what, g)
		}
	}
	var texts []string
	for _, w := range g.Warnings {
		texts = append(texts, fmt.Sprintf("%d %s", w.Line, w.Text))
	}
	want := []string{
		"33 RootImage= is not honoured yet: the service sees the host's own file system",
		"34 Unknown= is unknown in section [Service]; ignored",
	}
	if !slices.Equal(texts, want) {
		t.Errorf("warnings %q, want %q", texts, want)
	}
}

func TestRefused(t *testing.T) {
	for content, want := range map[string]string{
		"[Service]\nType=simple\n":                                                                       "nothing to run",
		"[Service]\nExecStart=relative/path\n":                                                           "/u/a.service:2: ExecStart=",
		"[Service]\nExecStart=/bin/a\nExecStart=/bin/b\n":                                                "more than one ExecStart=",
		"[Service]\nType=oneshot\nExecStart=/bin/a\nRestart=always\n":                                    "without end",
		"[Service]\nExecStop=/bin/a\n":                                                                   "needs RemainAfterExit=yes",
		"[Service]\nExecStart=/bin/a\nUser=a b\n":                                                        "/u/a.service:3: User=",
		"[Unit]\nOnFailure=x.service y.service\nOnFailureJobMode=isolate\n[Service]\nExecStart=/bin/a\n": "only one unit can be isolated",
		"[Service]\nExecStart=/bin/a %b\n":                                                               "not known on this host",
		"[Service]\nExecStart=/bin/a\nWorkingDirectory=relative\n":                                       "WorkingDirectory=",
		"[Service]\nExecStart=/bin/a \"unbalanced\nExecStop=/bin/b\nType=simple":                         "ExecStart=",
	} {
		_, err := compile(t, "a.service", content)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
	if _, err := Parse("/u/b.service", []byte("[Service]\n[Unit\n")); err == nil || !strings.HasPrefix(err.Error(), "/u/b.service:2: ") {
		t.Errorf("broken header: %v", err)
	}
}

func TestDefaultsByType(t *testing.T) {
	oneshot, err := compile(t, "a.service", "[Service]\nExecStop=/bin/a\nRemainAfterExit=yes\n")
	if err != nil || oneshot.Services[0].Type != service.Oneshot || oneshot.Services[0].TimeoutStart != 0 {
		t.Errorf("without ExecStart=: %+v, %v", oneshot, err)
	}
	bus, err := compile(t, "a.service", "[Service]\nExecStart=/bin/a\nBusName=org.example.A\n")
	if err != nil || bus.Services[0].Type != service.DBus || bus.Services[0].BusName != "org.example.A" ||
		!slices.Contains(bus.Deps.Wants, "dbus.socket") || !slices.Contains(bus.Deps.After, "dbus.socket") || len(bus.Warnings) != 0 {
		t.Errorf("with BusName=: %+v, %v", bus, err)
	}
	if _, err := compile(t, "a.service", "[Service]\nType=dbus\nExecStart=/bin/a\n"); err == nil || !strings.Contains(err.Error(), "BusName=") {
		t.Errorf("Type=dbus without BusName=: %v", err)
	}
	target, err := compile(t, "a.target", "[Unit]\nWants=b.service\n")
	if err != nil || len(target.Services) != 0 || target.Source.Kind != service.FromTarget {
		t.Errorf("target: %+v, %v", target, err)
	}
}

func TestDropInsAndResets(t *testing.T) {
	main, _ := Parse("/u/a.service", []byte("[Service]\nExecStart=/bin/a\nEnvironment=A=1\nSuccessExitStatus=3\n"))
	more, _ := Parse("/u/a.service.d/10.conf", []byte("[Service]\nExecStart=\nExecStart=/bin/b\nEnvironment=B=2\nSuccessExitStatus=\n"))
	g, err := Compile("a.service", main, []*File{more}, Options{})
	s := g.Services[0]
	if err != nil || len(s.Start) != 1 || s.Start[0].Path != "/bin/b" || len(s.Exec.Environment) != 2 || len(s.SuccessStatus.Codes) != 0 {
		t.Errorf("%+v, %v", g, err)
	}
	if len(g.Source.Files) != 2 {
		t.Errorf("files %q", g.Source.Files)
	}
}

func TestExecConditionComesFirst(t *testing.T) {
	g, err := compile(t, "a.service", "[Service]\nExecStartPre=/bin/gone\nExecCondition=/bin/gone\nExecCondition=\nExecStartPre=\n"+
		"ExecStartPre=/bin/pre\nExecCondition=/bin/one\nExecCondition=/bin/two\nExecStart=/bin/a\n")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range g.Services[0].StartPre {
		got = append(got, fmt.Sprintf("%s %v", c.Path, c.Condition))
	}
	if want := []string{"/bin/one true", "/bin/two true", "/bin/pre false"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPermissionsStartOnly(t *testing.T) {
	g, err := compile(t, "a.service", "[Service]\nUser=daemon\nPermissionsStartOnly=yes\nExecStartPre=/bin/pre\nExecStart=/bin/a\nExecStopPost=/bin/post\n")
	if err != nil {
		t.Fatal(err)
	}
	s := g.Services[0]
	if !s.StartPre[0].FullPrivileges || !s.StopPost[0].FullPrivileges || s.Start[0].FullPrivileges {
		t.Errorf("%+v, %+v, %+v", s.StartPre, s.Start, s.StopPost)
	}
}

func TestExpandArgv(t *testing.T) {
	env := map[string]string{"ONE": "one", "TWO": "'two two' too", "EMPTY": ""}
	lookup := func(n string) (string, bool) { v, ok := env[n]; return v, ok }
	got := ExpandArgv([]string{"/bin/x", "$TWO", "$ONE${ONE}", "${TWO}", "$EMPTY", "$UNSET", "${UNSET}", "a$$b", "$$ONE", "$", "${ONE", "x$ONE"}, lookup)
	want := []string{"/bin/x", "two two", "too", "'two two' too", "", "a$b", "$ONE", "$", "${ONE", "x$ONE"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestUnitsPage keeps docs/UNITS.md equal to the table.
func TestUnitsPage(t *testing.T) {
	const path = "../../docs/UNITS.md"
	page := unitsPage(t)
	if *rewrite {
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != page {
		t.Errorf("%s is not what the table says; run: go test ./internal/unitfile -run UnitsPage -rewrite", path)
	}
}

func unitsPage(t *testing.T) string {
	uses := map[string]int{}
	for _, row := range table(t, "directives") {
		uses[row["section"]+"."+row["directive"]], _ = strconv.Atoi(row["files"])
	}
	var b strings.Builder
	b.WriteString("# Unit files\n\nGenerated from `internal/unitfile/directives*.go` by `go test ./internal/unitfile -run UnitsPage -rewrite`; do not edit.\n\n" +
		"Legion reads `.service`, `.timer`, `.path`, `.socket` and `.target` units with their drop-ins, as systemd.syntax(7) has them. The number behind a directive is how many of 493 service files of Debian 12 set it.\n" +
		"A unit is enabled, as with systemd, by a link in a directory such as `multi-user.target.wants/` beside it; `legiond --boot all` takes every unit with an `[Install]` section for enabled. An instance of a template is there once a unit or such a link names it. Types of unit that Legion leaves to the machine (mounts, devices, slices …) are not waited for. A connection that legiond has taken from a socket with `Accept=yes` and not given to its service yet is lost, as the only thing of a socket, where legiond is killed at that moment; one that waits in the socket is not.\n" +
		"A script of `/etc/init.d` whose name no unit file has becomes a unit, as by systemd-sysv-generator(8): order and runlevels by its LSB header and the `rcN.d` links, `ExecReload=` where its usage offers it, `PIDFile=` (and `Restart=on-failure`) where a comment `# pidfile:` names one; its drop-ins apply.\n" +
		"A directive that is not in these lists is unknown: `legion status` names the file and the line. Sections and directives that begin with `X-` are nobody's business but their author's, but for those below.\n" +
		"Units of `JoinsNamespaceOf=` see the same `/tmp` and `/var/tmp` as long as one of them is up, and are in one network and IPC namespace as long as one of them has a process; with `PrivateUsers=` a unit makes these two of its own.\n" +
		"`FailureAction=` and its like do what they say where legiond is process 1: of a machine, where `exit` is a poweroff, or of a container, where a poweroff and a halt are an exit with status 0, and a reboot is asked of who has made the container (reboot(2)). Elsewhere `exit` and `exit-force` end legiond, and the others are not carried out, which `legion status` and the log say.\n" +
		"What others make of an automatic restart: nothing, as with `RestartMode=direct`, unless the unit says `RestartMode=normal` or `debug`; then `OnFailure=` and `OnSuccess=` count, and what is bound to it goes down and up with it.\n\n" +
		"Beyond systemd: a unit that did not start, or was stopped, because one that it requires or is bound to is down, is started when that one is up again; `X-RestartOnDependency=no` in its `[Unit]` section leaves it down.\n" +
		"`X-ReadinessProbe=` and `X-LivenessProbe=` in `[Service]` ask a service how it is: `http://HOST:PORT/PATH` (also https, not verified), `tcp://HOST:PORT`, `exec:COMMAND LINE`, and for readiness `log:REGULAR EXPRESSION` (a line that this run has written). The start of a unit is done once its readiness probe succeeds, within `TimeoutStartSec=`; a liveness probe that fails three times in a row ends the service as failed (result `unhealthy`), and `Restart=` applies. `X-ReadinessProbePeriodSec=` (10 s), `…TimeoutSec=` (1 s), `…InitialDelaySec=` (0) and `…FailureThreshold=` (3) go with each.\n")
	for _, section := range []string{"Unit", "Service", "Timer", "Path", "Socket", "Install"} {
		fmt.Fprintf(&b, "\n## [%s]\n\nHonoured:\n\n", section)
		var honoured []string
		reasons := map[string][]string{}
		for _, d := range Directives {
			if d.Section != section {
				continue
			}
			name := "`" + d.Name + "=`"
			if n := uses[section+"."+d.Name]; n > 0 {
				name += fmt.Sprintf(" %d", n)
			}
			if d.Honoured() {
				honoured = append(honoured, name)
			} else {
				reasons[d.Reason] = append(reasons[d.Reason], name)
			}
		}
		b.WriteString(strings.Join(honoured, ", ") + "\n")
		if len(reasons) == 0 {
			continue
		}
		b.WriteString("\nKnown, not honoured yet (said once by `legion status` and in the log):\n\n| directives | what happens instead |\n| --- | --- |\n")
		done := map[string]bool{}
		for _, d := range Directives {
			if d.Section == section && d.Reason != "" && !done[d.Reason] {
				done[d.Reason] = true
				fmt.Fprintf(&b, "| %s | %s |\n", strings.Join(reasons[d.Reason], ", "), d.Reason)
			}
		}
	}
	return b.String()
}
