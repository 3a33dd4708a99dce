package debian

import (
	"context"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// ansiblePackage has Ansible's own modules; it is unpacked, not installed.
const ansiblePackage = "ansible-core"

// downloadAnsible puts the package beside the others, if it can be had.
func downloadAnsible(t *testing.T, dir string) {
	t.Helper()
	if found, _ := filepath.Glob(filepath.Join(dir, ansiblePackage+"_*.deb")); len(found) > 0 {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	get := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", ansiblePackage)
	get.Dir = dir
	if out, err := get.CombinedOutput(); err != nil {
		t.Logf("there will be no test of Ansible: %v\n%s", err, out)
	}
}

// answer is what a module says, as far as the test reads it.
type answer struct {
	Changed, Failed, Enabled bool
	State, Msg               string
}

// module runs one of Ansible's modules as Ansible does on a managed machine.
func (m *machine) module(t *testing.T, name, args string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := m.command(ctx, "/usr/bin/python3", "-B", "-m", "ansible.modules."+name)
	cmd.Env = append(cmd.Env, "PYTHONPATH=/opt/ansible/usr/lib/python3/dist-packages")
	cmd.Stdin = strings.NewReader(`{"ANSIBLE_MODULE_ARGS": ` + args + `}`)
	out, err := cmd.Output() // it fails where the module does
	var a answer
	if bad := json.Unmarshal(out, &a); bad != nil {
		t.Fatalf("%s %s: %v, %v\n%s", name, args, err, bad, out)
	}
	return a
}

// mainPID is "0" where there is none; a masked unit has no such property.
func (m *machine) mainPID(t *testing.T, unit string) string {
	if pid := m.show(t, unit, "MainPID"); pid != "" {
		return pid
	}
	return "0"
}

// ansible has a unit managed by the modules systemd and service: each says what
// it found and did, and a second time that nothing was to do. (service_facts of
// this version looks only where PID 1 is called systemd.)
func (m *machine) ansible(t *testing.T) {
	if found, _ := filepath.Glob(m.path("/debs/" + ansiblePackage + "_*.deb")); len(found) == 0 {
		t.Skip("the package could not be downloaded")
	}
	if out, err := m.try(t.Context(), "/usr/bin/python3", "-c", "import distutils, json, platform"); err != nil {
		t.Skipf("no python3 that the modules run on: %s", out)
	}
	m.run(t, "sh", "-ec", "mkdir -p /opt/ansible; dpkg -x /debs/"+ansiblePackage+"_*.deb /opt/ansible")
	m.write(t, "/usr/lib/systemd/system/played.service", "[Service]\nExecStart=/bin/sleep 1000\nExecReload=/bin/touch /run/played-reloaded\n[Install]\nWantedBy=multi-user.target\n")
	for _, step := range []struct {
		module, args string
		changed      bool
		keeps        bool   // the main process, or that there is none
		active, file string // what systemctl shows afterwards
	}{
		// The file was written just now: to start it needs no daemon_reload.
		{"systemd", `{"name": "played", "state": "started", "enabled": true}`, true, false, "active", "enabled"},
		{"systemd", `{"name": "played.service", "state": "started", "enabled": true}`, false, true, "active", "enabled"},
		{"systemd", `{"daemon_reload": true}`, false, true, "active", "enabled"},
		{"systemd", `{"name": "played", "state": "restarted"}`, true, false, "active", "enabled"},
		{"systemd", `{"name": "played", "state": "reloaded"}`, true, true, "active", "enabled"},
		{"systemd", `{"name": "played", "state": "stopped", "masked": true}`, true, false, "inactive", "masked"},
		{"systemd", `{"name": "played", "state": "stopped", "masked": true}`, false, true, "inactive", "masked"},
		{"systemd", `{"name": "played", "masked": false, "enabled": false}`, true, true, "inactive", "disabled"},
		{"systemd", `{"name": "played", "state": "stopped", "enabled": false, "masked": false}`, false, true, "inactive", "disabled"},
		{"service", `{"name": "played", "state": "started", "enabled": true}`, true, false, "active", "enabled"},
		{"service", `{"name": "played", "state": "started", "enabled": true}`, false, true, "active", "enabled"},
		{"service", `{"name": "played", "state": "restarted"}`, true, false, "active", "enabled"},
	} {
		main := m.mainPID(t, "played")
		a := m.module(t, step.module, step.args)
		if a.Failed || a.Changed != step.changed {
			t.Errorf("%s %s: %+v", step.module, step.args, a)
		}
		if active, file := m.show(t, "played", "ActiveState"), m.show(t, "played", "UnitFileState"); active != step.active || file != step.file {
			t.Errorf("after %s %s it is %s, %s", step.module, step.args, active, file)
		}
		if now := m.mainPID(t, "played"); step.keeps != (now == main) {
			t.Errorf("%s %s: the main process was %s and is %s", step.module, step.args, main, now)
		}
	}
	m.run(t, "test", "-e", "/run/played-reloaded")
	for _, module := range []string{"systemd", "service"} {
		if a := m.module(t, module, `{"name": "nowhere", "state": "started"}`); !a.Failed || !strings.Contains(strings.ToLower(a.Msg), "could not find the requested service") {
			t.Errorf("a unit that is not there: %+v", a)
		}
	}
	if a := m.module(t, "service", `{"name": "played", "state": "stopped", "enabled": false}`); a.Failed || !a.Changed || a.State != "stopped" || a.Enabled {
		t.Errorf("%+v", a)
	}
	m.run(t, "rm", "-r", "/usr/lib/systemd/system/played.service", "/run/played-reloaded", "/opt/ansible")
	m.run(t, "systemctl", "daemon-reload")
}
