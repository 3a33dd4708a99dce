package unitdir

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// write makes files; a content of "-> x" is a link to x.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(to, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

const run = "[Service]\nExecStart=/bin/true\n"

func load(t *testing.T, paths ...string) (map[string]service.Group, []string) {
	t.Helper()
	groups, problems := Load(paths, Options{Options: unitfile.Options{Root: true}})
	m := map[string]service.Group{}
	for _, g := range groups {
		m[g.Name] = g
	}
	var texts []string
	for _, p := range problems {
		texts = append(texts, fmt.Sprintf("%s:%d: %s", filepath.Base(p.File), p.Line, p.Text))
	}
	return m, texts
}

func TestFirstPathWins(t *testing.T) {
	etc, lib := t.TempDir(), t.TempDir()
	write(t, etc, map[string]string{
		"a.service":               "[Unit]\nDescription=ours\n" + run,
		"masked.service":          "-> /dev/null",
		"b.service.d/20-own.conf": "[Service]\nEnvironment=X=etc\n",
		"b.service.d/10-off.conf": "-> /dev/null",
	})
	write(t, lib, map[string]string{
		"a.service":               "[Unit]\nDescription=theirs\n" + run,
		"masked.service":          run,
		"b.service":               run,
		"b.service.d/20-own.conf": "[Service]\nEnvironment=X=lib\n",
		"b.service.d/10-off.conf": "[Service]\nEnvironment=OFF=1\n",
		"service.d/30-all.conf":   "[Service]\nEnvironment=ALL=1\n",
	})
	groups, problems := load(t, etc, lib)
	if len(problems) > 0 {
		t.Errorf("problems: %q", problems)
	}
	if groups["a.service"].Description != "ours" {
		t.Errorf("a.service: %+v", groups["a.service"])
	}
	if _, ok := groups["masked.service"]; ok {
		t.Error("masked.service is loaded")
	}
	if env := groups["b.service"].Services[0].Exec.Environment; !slices.Equal(env, []string{"X=etc", "ALL=1"}) {
		t.Errorf("b.service has the environment %q", env)
	}
	if _, err := Find([]string{etc, lib}, "masked.service", Options{}); err == nil || !strings.Contains(err.Error(), "masked") {
		t.Errorf("Find masked: %v", err)
	}
	if _, err := Find([]string{etc}, "none.service", Options{}); err == nil || !strings.Contains(err.Error(), etc) {
		t.Errorf("Find none: %v", err)
	}
}

// TestDropinsAreThoseThatCount: what is shown as a unit's drop-ins are the files
// that its group was made of.
func TestDropinsAreThoseThatCount(t *testing.T) {
	etc, lib := t.TempDir(), t.TempDir()
	write(t, etc, map[string]string{
		"a-b@.service.d/2.conf": "[Unit]\nDescription=two\n",
		"service.d/1.conf":      "[Unit]\nDescription=one\n",
	})
	write(t, lib, map[string]string{
		"a-b@.service":           run,
		"a-b@x.service.d/3.conf": "[Unit]\nDescription=three\n",
		"a-.service.d/1.conf":    "[Unit]\nDescription=of the prefix\n",
		"a-@.service.d/4.conf":   "[Unit]\nDescription=four\n",
		"other.service.d/5.conf": "[Unit]\nDescription=five\n",
	})
	paths := []string{etc, lib}
	g, err := Find(paths, "a-b@x.service", Options{Options: unitfile.Options{Root: true}})
	if err != nil {
		t.Fatal(err)
	}
	got := Dropins(paths, "a-b@x.service")
	if len(got) != 4 || !slices.Equal(got, g.Source.Files[1:]) || g.Description != "four" {
		t.Errorf("%q, made of %q: %s", got, g.Source.Files, g.Description)
	}
}

func TestBrokenFilesStopNoOther(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"good.service":             run,
		"header.service":           "[Unit]\n[Service\nExecStart=/bin/true\n",
		"none.service":             "[Service]\n",
		"dropped.service":          run,
		"dropped.service.d/x.conf": "[Broken\n",
		"dir.service/file":         "",
		"x.mount":                  "[Mount]\nWhat=x\n",
		"x.path":                   "[Path]\n",
		"README":                   "not a unit",
		"dangling.service":         "-> elsewhere/dangling.service",
	})
	again := filepath.Join(t.TempDir(), "again") // as /lib is /usr/lib
	if err := os.Symlink(dir, again); err != nil {
		t.Fatal(err)
	}
	groups, problems := load(t, dir, filepath.Join(dir, "absent"), again)
	if len(groups) != 2 {
		t.Errorf("groups: %v", groups)
	}
	for _, want := range []string{
		"header.service:2: section header", "none.service:0: neither ExecStart=", "x.conf:1: section header",
		"dir.service:0: cannot read", "x.path:0: no Path…= or DirectoryNotEmpty=",
		"dangling.service:0: cannot read the unit file: no such file",
	} {
		if !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, want) }) {
			t.Errorf("no problem says %q: %q", want, problems)
		}
	}
	if len(problems) != 6 {
		t.Errorf("problems: %q", problems)
	}
}

func TestAliasesTemplatesAndLinks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"ssh.service":                             "[Unit]\nAfter=network.target\n" + run + "[Install]\nWantedBy=multi-user.target graphical.target\n",
		"sshd.service":                            "-> ssh.service",
		"get@.service":                            "[Unit]\nDescription=%i\n" + run,
		"get@.service.d/a.conf":                   "[Service]\nEnvironment=T=%I\n",
		"get@two.service.d/b.conf":                "[Service]\nEnvironment=TWO=1\n",
		"multi-user.target.wants/ssh.service":     "-> ../ssh.service",
		"multi-user.target.wants/get@one.service": "-> ../get@.service",
		"user.service":                            "[Unit]\nRequires=get@two.service x.mount -.mount\n" + run,
		"masked.service":                          "-> /dev/null",
		"multi-user.target.wants/masked.service":  "-> ../masked.service",
	})
	groups, problems := load(t, dir)
	if len(problems) > 0 {
		t.Errorf("problems: %q", problems)
	}
	if !slices.Equal(groups["ssh.service"].Deps.Aliases, []string{"sshd.service"}) {
		t.Errorf("aliases %q", groups["ssh.service"].Deps.Aliases)
	}
	if g := groups["get@one.service"]; g.Description != "one" || !slices.Equal(g.Services[0].Exec.Environment, []string{"T=one"}) {
		t.Errorf("get@one.service: %+v", g)
	}
	if g := groups["get@two.service"]; !slices.Equal(g.Services[0].Exec.Environment, []string{"T=two", "TWO=1"}) {
		t.Errorf("get@two.service: %+v", g)
	}
	if g := groups["multi-user.target"]; !g.Boot || !slices.Equal(g.Deps.Wants, []string{"get@one.service", "ssh.service"}) {
		t.Errorf("multi-user.target: %+v", g)
	}
	if _, ok := groups["network.target"]; !ok {
		t.Error("network.target is not made")
	}
	if g := groups["user.service"]; !slices.Equal(g.Deps.Requires, []string{"get@two.service"}) || len(g.Warnings) != 1 {
		t.Errorf("user.service: %+v", g)
	}
	if g := groups["ssh.service"]; !slices.Equal(g.Deps.WantedBy, []string{"multi-user.target"}) {
		t.Errorf("ssh.service is wanted by %q: only the link counts", g.Deps.WantedBy)
	}
	all, _ := Load([]string{dir}, Options{Enabled: true})
	for _, g := range all {
		if g.Name == "ssh.service" && !slices.Equal(g.Deps.WantedBy, []string{"multi-user.target", "graphical.target"}) {
			t.Errorf("with Enabled, ssh.service is wanted by %q", g.Deps.WantedBy)
		}
	}
	g, err := Find([]string{dir}, "get@three.service", Options{})
	if err != nil || g.Description != "three" {
		t.Errorf("Find an instance: %+v, %v", g, err)
	}
	if g, err = Find([]string{dir}, "sshd.service", Options{}); err != nil || g.Name != "ssh.service" {
		t.Errorf("Find an alias: %+v, %v", g, err)
	}
}

// A socket names a template: that is none of the units, and nothing is wrong.
func TestSocketOfATemplate(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"echo.socket":   "[Socket]\nListenStream=1\nAccept=yes\n[Install]\nWantedBy=sockets.target\n",
		"echo@.service": "[Service]\nExecStart=/bin/cat\nStandardInput=socket\n[Install]\nWantedBy=multi-user.target\n",
	})
	groups, problems := load(t, dir)
	if len(problems) > 0 {
		t.Error(problems)
	}
	if g, ok := groups["echo.socket"]; !ok || g.Triggers() != "echo@.service" {
		t.Errorf("the socket: %+v", g)
	}
	if g, ok := groups["echo@.service"]; ok {
		t.Errorf("the template was loaded: %+v", g)
	}
}

func TestSystemdsOwnPartsAreNotLoaded(t *testing.T) {
	lib := t.TempDir()
	write(t, lib, map[string]string{
		"cron.service":                    run,
		"systemd-tmpfiles-setup.service":  run,
		"dbus-org.freedesktop.x1.service": "-> systemd-x1.service",
		"systemd-x1.service":              run,
		"getty@.service":                  run,
		"sysinit.target":                  "[Unit]\nDescription=early\nWants=systemd-x1.service\n",
		"multi-user.target":               "[Unit]\nDescription=up\n",
		"sysinit.target.wants/systemd-tmpfiles-setup.service": "-> ../systemd-tmpfiles-setup.service",
		"multi-user.target.wants/getty@tty1.service":          "-> ../getty@.service",
		"multi-user.target.wants/cron.service":                "-> ../cron.service",
	})
	groups, problems := load(t, lib)
	if len(problems) > 0 {
		t.Errorf("problems: %q", problems)
	}
	for name := range groups {
		if strings.HasPrefix(name, "systemd-") || strings.HasPrefix(name, "getty@") || strings.HasPrefix(name, "dbus-") {
			t.Errorf("%s is loaded", name)
		}
	}
	if wants := groups["sysinit.target"].Deps.Wants; len(wants) > 1 || len(wants) == 1 && wants[0] != "systemd-x1.service" {
		t.Errorf("sysinit.target wants %q", wants)
	}
	if wants := groups["multi-user.target"].Deps.Wants; !slices.Equal(wants, []string{"cron.service"}) {
		t.Errorf("multi-user.target wants %q", wants)
	}
	for _, name := range []string{"systemd-tmpfiles-setup.service", "getty@tty1.service"} {
		if _, err := Find([]string{lib}, name, Options{}); err == nil || !strings.Contains(err.Error(), "part of systemd") {
			t.Errorf("Find %s: %v", name, err)
		}
	}
}

func TestScriptsBecomeUnits(t *testing.T) {
	units, etc := t.TempDir(), t.TempDir()
	const head = "#!/bin/sh\n### BEGIN INIT INFO\n# Provides: "
	write(t, units, map[string]string{"native.service": run, "masked.service": "-> /dev/null", "foo.service.d/x.conf": "[Unit]\nDescription=dropped in\n"})
	write(t, etc, map[string]string{
		"init.d/foo":     head + "foo also\n### END INIT INFO\n",
		"init.d/native":  head + "native\n### END INIT INFO\n",
		"init.d/masked":  head + "masked\n### END INIT INFO\n",
		"init.d/off":     head + "off\n### END INIT INFO\n",
		"init.d/foo.bak": head + "foo\n### END INIT INFO\n",
		"rc2.d/S01foo":   "-> ../init.d/foo",
		"rc5.d/S01foo":   "-> ../init.d/foo",
		"rc2.d/K01off":   "-> ../init.d/off",
	})
	if err := os.Chmod(filepath.Join(etc, "init.d/foo"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"native", "masked", "foo.bak", "off"} {
		if err := os.Chmod(filepath.Join(etc, "init.d", n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	groups, problems := Load([]string{units}, Options{Options: unitfile.Options{Root: true}, Initd: filepath.Join(etc, "init.d")})
	if len(problems) > 0 {
		t.Error(problems)
	}
	kinds := map[string]service.SourceKind{}
	for _, g := range groups {
		kinds[g.Name] = g.Source.Kind
		switch g.Name {
		case "foo.service":
			if g.Description != "dropped in" || !slices.Equal(g.Deps.Aliases, []string{"also.service"}) || g.Services[0].Start[0].Path != filepath.Join(etc, "init.d/foo") {
				t.Errorf("foo.service: %+v", g)
			}
		case "multi-user.target", "graphical.target":
			if !slices.Contains(g.Deps.Wants, "foo.service") || slices.Contains(g.Deps.Wants, "off.service") {
				t.Errorf("%s wants %q", g.Name, g.Deps.Wants)
			}
		}
	}
	if kinds["foo.service"] != service.FromInitd || kinds["off.service"] != service.FromInitd || kinds["native.service"] != service.FromUnit || kinds["masked.service"] != "" || kinds["foo.bak.service"] != "" {
		t.Errorf("kinds: %v", kinds)
	}
	g, err := Find([]string{units}, "also.service", Options{Initd: filepath.Join(etc, "init.d")})
	if err != nil || g.Name != "foo.service" {
		t.Errorf("Find: %+v, %v", g, err)
	}
}

// BenchmarkLoad is the cost of one unit of a thousand.
func BenchmarkLoad(b *testing.B) {
	dir := b.TempDir()
	const n = 1000
	for i := range n {
		text := fmt.Sprintf("[Unit]\nDescription=unit %d\nAfter=network.target\n[Service]\nExecStart=/usr/bin/daemon --number %d\nRestart=always\n[Install]\nWantedBy=multi-user.target\n", i, i)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("unit%d.service", i)), []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if groups, problems := Load([]string{dir}, Options{Options: unitfile.Options{Root: true}, Enabled: true}); len(groups) < n || len(problems) > 0 {
			b.Fatal(len(groups), problems)
		}
	}
}
