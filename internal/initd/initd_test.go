package initd

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"legion.dev/legion/internal/unitfile"
)

type vector struct {
	Name    string
	Scripts []struct {
		Name  string
		Mode  string
		Text  string
		Links []string `json:"rc_links"`
	}
	Native map[string]string `json:"native_units"`
	Expect struct {
		Units   []string
		Entries []string `json:"output_entries"`
		Unit    map[string]struct {
			Sections []string
			Keys     []string `json:"unit_keys"`
			Absent   []string `json:"unit_keys_absent"`
			Values   map[string]string
			Words    map[string][]string
		}
		Aliases  map[string][]string
		WantedBy map[string]map[string]bool `json:"wanted_by"`
	}
}

func vectors(t testing.TB) []vector {
	t.Helper()
	data, err := os.ReadFile("testdata/lsb.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []vector
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLSB(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) { v.check(t) })
	}
}

func (v *vector) check(t *testing.T) {
	var scripts []Script
	for _, s := range v.Scripts {
		if strings.HasSuffix(s.Mode, "55") { // the loader takes executable files only
			scripts = append(scripts, Script{Path: "/etc/init.d/" + s.Name, Text: s.Text, Links: s.Links})
		}
	}
	units, problems := Units(scripts, func(name string) bool { _, ok := v.Native[name]; return ok })
	if len(problems) > 0 {
		t.Error(problems)
	}
	byName := map[string]Unit{}
	names := []string{}
	for _, u := range units {
		byName[u.Name] = u
		names = append(names, u.Name)
	}
	slices.Sort(names)
	if v.Expect.Units != nil && !slices.Equal(names, v.Expect.Units) || v.Expect.Entries != nil && len(v.Expect.Entries) == 0 && len(names) > 0 {
		t.Errorf("the units are %q, want %q", names, v.Expect.Units)
	}
	for name, want := range v.Expect.Unit {
		f, err := unitfile.Parse(name, []byte(byName[name].Text))
		if err != nil {
			t.Fatal(err)
		}
		values, keys, sections := map[string]string{}, []string{}, []string{}
		for _, e := range f.Entries {
			values[e.Section+"."+e.Key] = e.Value
			if !slices.Contains(sections, e.Section) {
				sections = append(sections, e.Section)
			}
			if e.Section == "Unit" {
				keys = append(keys, e.Key)
			}
		}
		slices.Sort(keys)
		slices.Sort(want.Keys)
		if want.Keys != nil && !slices.Equal(keys, want.Keys) || want.Sections != nil && !slices.Equal(sections, want.Sections) {
			t.Errorf("%s has the sections %q and the keys %q, want %q and %q", name, sections, keys, want.Sections, want.Keys)
		}
		for _, key := range want.Absent {
			if slices.Contains(keys, key) {
				t.Errorf("%s has %s=", name, key)
			}
		}
		for key, value := range want.Values {
			value = strings.ReplaceAll(value, "{init.d}", "/etc/init.d")
			if got := strings.ReplaceAll(values[key], `"`, ""); got != value {
				t.Errorf("%s: %s=%s, want %s", name, key, got, value)
			}
		}
		for key, words := range want.Words {
			got := strings.Fields(values[key])
			slices.Sort(got)
			slices.Sort(words)
			if !slices.Equal(got, words) {
				t.Errorf("%s: %s=%q, want %q", name, key, got, words)
			}
		}
	}
	for alias, to := range v.Expect.Aliases {
		if !slices.ContainsFunc(units, func(u Unit) bool { return slices.Contains(to, u.Name) && slices.Contains(u.Aliases, alias) }) {
			t.Errorf("%s is no other name of %q", alias, to)
		}
	}
	for name, targets := range v.Expect.WantedBy {
		for target, want := range targets {
			if got := slices.Contains(byName[name].WantedBy, target); got != want {
				t.Errorf("%s is wanted by %s: %v, want %v", name, target, got, want)
			}
		}
	}
}

const vsftp = `#!/bin/sh
# pidfile: /run/ftp.pid
### BEGIN INIT INFO
# Provides:          ftp
# Required-Start:    $network $remote_fs other
# X-Start-Before:    late
# Short-Description: serves 100% of files
# Description:       first line
#                    second line
# Default-Start:     2 3
### END INIT INFO
case "$1" in
*) echo "Usage: $0 {start|stop|force-reload|restart}" \
 "{status|reload}"
esac
`

func TestEveryPartOfAUnit(t *testing.T) {
	units, _ := Units([]Script{
		{Path: "/etc/init.d/ftp", Text: vsftp, Links: []string{"rc2.d/S20ftp", "rc0.d/K01ftp"}},
		{Path: "/etc/init.d/old", Text: "# description: an old one \\\n", Links: []string{"rc3.d/S10old"}},
	}, func(string) bool { return false })
	want := `[Unit]
Documentation=man:systemd-sysv-generator(8)
SourcePath=/etc/init.d/ftp
Description=LSB: serves 100%% of files
Before=late.service
After=network-online.target remote-fs.target other.service old.service
Wants=network-online.target

[Service]
Type=forking
Restart=on-failure
TimeoutSec=5min
IgnoreSIGPIPE=no
KillMode=process
GuessMainPID=no
RemainAfterExit=no
PIDFile=/run/ftp.pid
SuccessExitStatus=5 6
ExecStart="/etc/init.d/ftp" start
ExecStop="/etc/init.d/ftp" stop
ExecReload="/etc/init.d/ftp" reload
`
	if len(units) != 2 || units[0].Text != want {
		t.Errorf("got:\n%s\nwant:\n%s", units[0].Text, want)
	}
	if !strings.Contains(units[1].Text, "Description=SYSV: an old one\n") || !strings.Contains(units[1].Text, "Before=ftp.service\n") || !strings.Contains(units[1].Text, "RemainAfterExit=yes\n") {
		t.Errorf("got:\n%s", units[1].Text)
	}
	for _, u := range units {
		f, err := unitfile.Parse(u.Path, []byte(u.Text))
		if err != nil {
			t.Fatal(err)
		}
		g, err := unitfile.Compile(u.Name, f, nil, unitfile.Options{Root: true})
		if err != nil || len(g.Warnings) > 0 {
			t.Errorf("%s: %v, %v", u.Name, g.Warnings, err)
		}
	}
}

func FuzzScripts(f *testing.F) {
	for _, v := range vectors(f) {
		for _, s := range v.Scripts {
			f.Add(s.Name, s.Text)
		}
	}
	f.Add("ftp", vsftp)
	f.Fuzz(func(t *testing.T, name, text string) {
		if name == "" || strings.ContainsAny(name, "/\x00\n") {
			return // no file has such a name
		}
		units, _ := Units([]Script{{Path: "/etc/init.d/" + name, Text: text}}, func(string) bool { return false })
		for _, u := range units {
			file, err := unitfile.Parse(u.Path, []byte(u.Text))
			if err != nil {
				t.Fatalf("%q: %v", u.Text, err)
			}
			if _, err := unitfile.Compile(u.Name, file, nil, unitfile.Options{Root: true}); err != nil {
				t.Errorf("%q: %v", u.Text, err)
			}
		}
	})
}
