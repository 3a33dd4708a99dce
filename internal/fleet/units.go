package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// The units of a fleet.
const (
	serverUnit    = "legion-server.service"
	collectorUnit = "collector.service"
	bootTarget    = "fleet.target"
)

func hostUnit(node string) string  { return "legiond-" + node + ".service" }
func agentUnit(node string) string { return "legion-agent-" + node + ".service" }

// collectorPort is where the collector of the examples listens.
const collectorPort = 9880

// basePath is where commands without a path are looked for, after our own.
const basePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// units gives the text of every unit file, by name.
func (f *Fleet) units() map[string]string {
	units := map[string]string{serverUnit: f.serverText()}
	wants := []string{serverUnit}
	if f.hasCollector() {
		units[collectorUnit] = f.collectorText()
		wants = append(wants, collectorUnit)
	}
	for _, n := range f.state.Nodes {
		units[hostUnit(n.Name)] = f.hostText(n)
		units[agentUnit(n.Name)] = f.agentText(n)
		wants = append(wants, hostUnit(n.Name))
		// An agent that never joined waits for its token, which `legion up`
		// fetches when the server is there.
		if _, err := os.Stat(f.tokenFile(n)); err == nil {
			wants = append(wants, agentUnit(n.Name))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "[Unit]\nDescription=Fleet in %s\n", specifiers(f.Dir))
	for _, w := range wants {
		fmt.Fprintf(&b, "Wants=%s\n", w)
	}
	units[bootTarget] = b.String()
	return units
}

// hasCollector: the examples were built.
func (f *Fleet) hasCollector() bool {
	_, err := os.Stat(f.program("examples/collector"))
	return err == nil
}

func (f *Fleet) tokenFile(n Node) string { return f.path("nodes", n.Name, "join.env") }

const unitHead = "# Written by `legion up`, which writes it again when it changes.\n"

// unitGoesOn ends [Unit]: a program of the fleet that dies often, as the server
// on a full disk, is started again all the same, later and later.
const unitGoesOn = "StartLimitIntervalSec=0\n"

func (f *Fleet) serverText() string {
	cmd := []string{
		f.program("legion-server"),
		"--dir", f.Dir,
		"--port", fmt.Sprint(f.state.Port),
	}
	if f.state.Namespaced {
		// One more listener inside the hub, for the agents.
		cmd = append(cmd, "--listen-netns", f.network().HubPath()+"="+f.network().HubAddr().String())
	}
	return unitHead + `[Unit]
Description=Control plane: the Kubernetes API, its controllers and etcd
` + unitGoesOn + `
[Service]
Type=notify
ExecStart=` + command(cmd...) + `
Environment=` + f.pathVariable() + `
Restart=always
RestartSec=0
RestartSteps=5
RestartMaxDelaySec=10
TimeoutStartSec=60
TimeoutStopSec=30
LimitNOFILE=65536
`
}

func (f *Fleet) collectorText() string {
	text := unitHead + `[Unit]
Description=Collector of what the log collectors on the nodes send
` + unitGoesOn + `
[Service]
Type=notify
ExecStart=` + command(f.program("examples/collector"),
		"--listen", fmt.Sprintf("%s:%d", f.centre(), collectorPort), "--dir", f.path("collector")) + `
Restart=always
RestartSec=0
RestartSteps=5
RestartMaxDelaySec=10
`
	if f.state.Namespaced {
		text += "NetworkNamespacePath=" + specifiers(f.network().HubPath()) + "\n"
	}
	return text
}

func (f *Fleet) hostText(n Node) string {
	dir := f.path("nodes", n.Name)
	text := unitHead + fmt.Sprintf(`[Unit]
Description=Node %s: the service manager
`+unitGoesOn+`
[Service]
Type=notify
ExecStart=%s
ExecStop=%s
Environment=%s
Restart=always
RestartSec=0
RestartSteps=5
RestartMaxDelaySec=10
# Its daemons outlive it: only legiond itself is ended with it, and ExecStop
# has stopped them before.
KillMode=process
Delegate=yes
TimeoutStopSec=120
LimitNOFILE=65536
`, n.Name,
		command(f.program("legiond"), "--dir", dir, "--units", filepath.Join(dir, "units")),
		command(f.program("legion"), "poweroff", "-H", filepath.Join(dir, "host.sock")),
		f.pathVariable())
	if f.state.Namespaced {
		text += "NetworkNamespacePath=" + specifiers(f.network().NodePath(n.Name)) + "\n"
	}
	return text
}

func (f *Fleet) agentText(n Node) string {
	dir := f.path("nodes", n.Name)
	text := unitHead + fmt.Sprintf(`[Unit]
Description=Node %s: the agent
After=%s
`+unitGoesOn+`
[Service]
Type=notify
ExecStart=%s
# The join token, for the first contact.
EnvironmentFile=-%s
Environment=%s
Restart=always
RestartSec=0
RestartSteps=5
RestartMaxDelaySec=10
# It is ready when it has met the server, which may be away for long.
TimeoutStartSec=infinity
`, n.Name, hostUnit(n.Name),
		command(f.program("legion-agent"),
			"--node", n.Name,
			"--host-socket", filepath.Join(dir, "host.sock"),
			"--server", f.serverURL(),
			"--dir", filepath.Join(dir, "agent"),
			"--node-ip", f.nodeAddr(n).String()),
		specifiers(f.tokenFile(n)), f.pathVariable())
	if f.state.Namespaced {
		text += "NetworkNamespacePath=" + specifiers(f.network().NodePath(n.Name)) + "\n"
	}
	return text
}

// pathVariable lets manifests name the examples' programs without a path.
func (f *Fleet) pathVariable() string {
	return quote("PATH=" + f.program("examples") + ":" + f.Bin + ":" + basePath)
}

// writeUnits writes all unit files and removes those of nodes that are gone.
// Files that the user put beside them are left alone.
func (f *Fleet) writeUnits() error {
	units := f.units()
	for name, text := range units {
		if err := writeFile(f.path("units", name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("cannot write unit %s: %w", name, err)
		}
	}
	entries, err := os.ReadDir(f.path("units"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot read the units: %w", err)
	}
	for _, e := range entries {
		// Directories hold the user's drop-ins.
		ours := !e.IsDir() && (e.Name() == collectorUnit || strings.HasPrefix(e.Name(), "legiond-") || strings.HasPrefix(e.Name(), "legion-agent-"))
		if _, wanted := units[e.Name()]; ours && !wanted {
			if err := os.Remove(f.path("units", e.Name())); err != nil {
				return fmt.Errorf("cannot remove unit %s: %w", e.Name(), err)
			}
		}
	}
	for _, n := range f.state.Nodes {
		if err := os.MkdirAll(f.path("nodes", n.Name, "units"), 0o755); err != nil {
			return fmt.Errorf("cannot make the directory of node %s: %w", n.Name, err)
		}
	}
	return nil
}

// command joins words as ExecStart= splits them (systemd.service(5), "Command
// lines"): neither specifiers nor variables are expanded in them.
func command(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = quote(strings.ReplaceAll(w, "$", "$$"))
	}
	return strings.Join(quoted, " ")
}

// quote makes one word of a text (systemd.syntax(7), "Quoting").
func quote(s string) string {
	s = specifiers(s)
	if s != "" && !strings.ContainsAny(s, " \t\n\"'\\;") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// specifiers escapes what systemd.unit(5) calls specifiers.
func specifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }
