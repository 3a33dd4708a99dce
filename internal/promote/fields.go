package promote

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// users are runAsUser, runAsGroup and supplementalGroups: numbers of this host.
func (b *builder) users() error {
	x := &b.svc.Exec
	b.pod, b.security = object{}, object{}
	for _, name := range []string{"User", "Group", "SupplementaryGroups", "NoNewPrivileges"} {
		b.field[name] = true
	}
	var groups []int64
	if x.User != "" {
		a, err := b.opts.User(x.User)
		if err != nil {
			return fmt.Errorf("its User=%s: %w", x.User, err)
		}
		b.pod["runAsUser"], b.pod["runAsGroup"] = a.UID, a.GID
		groups = append(groups, a.Groups...)
		b.setEnv("HOME", a.Home)
		b.setEnv("LOGNAME", a.Name)
		b.setEnv("USER", a.Name)
	}
	for i, name := range append([]string{x.Group}, x.SupplementaryGroups...) {
		if name == "" {
			continue
		}
		gid, err := b.opts.Group(name)
		switch {
		case err != nil:
			return fmt.Errorf("group %s: %w", name, err)
		case i == 0:
			b.pod["runAsGroup"] = gid
		default:
			groups = append(groups, gid)
		}
	}
	slices.Sort(groups)
	if groups = slices.Compact(groups); len(groups) > 0 {
		b.pod["supplementalGroups"] = groups
	}
	if len(b.pod) > 0 {
		b.result.Changed = append(b.result.Changed, "users and groups become the numbers that they have here: they must have them on every node")
	}
	if x.NoNewPrivileges {
		b.security["allowPrivilegeEscalation"] = false
	}
	return nil
}

func (b *builder) capabilities() {
	b.field["CapabilityBoundingSet"] = true
	keep := b.svc.Exec.CapabilityBoundingSet
	if keep == nil || len(*keep) == len(unitfile.Capabilities) {
		return
	}
	c := object{"drop": []string{"ALL"}}
	var add []string
	for _, name := range *keep {
		add = append(add, strings.TrimPrefix(name, "CAP_"))
	}
	if len(add) > 0 {
		c["add"] = add
	}
	b.security["capabilities"] = c
}

// plain says whether a command means the same in a container: it has no prefix
// and no variables.
func plain(c service.Command) bool {
	return !c.IgnoreFailure && !c.FullPrivileges && !c.KeepUser && len(c.Argv) > 0 && c.Argv[0] == c.Path && !strings.Contains(strings.Join(c.Argv, ""), "$")
}

func (b *builder) command() {
	if plain(b.svc.Start[0]) {
		b.field["ExecStart"] = true
		b.container["command"] = b.svc.Start[0].Argv
	}
	if x := &b.svc.Exec; path.IsAbs(x.WorkingDirectory) && !x.WorkingDirectoryOptional {
		b.field["WorkingDirectory"] = true
		b.container["workingDir"] = x.WorkingDirectory
	}
}

func (b *builder) limits() {
	r := b.svc.Resources
	if r == nil {
		return
	}
	limits := object{}
	if m := r.MemoryMax; m != nil && m.Share == 0 && m.Value > 0 && m.Value <= math.MaxInt64 {
		b.field["MemoryMax"], b.field["MemoryLimit"] = true, true
		limits["memory"] = fmt.Sprint(m.Value)
		if r.MemorySwapMax == nil {
			b.result.Changed = append(b.result.Changed, "MemoryMax= becomes limits.memory, with which there is no swap")
		}
	}
	// A thousandth of a processor is the least that a pod can say.
	if q := r.CPUQuota; q > 0 && q%10 == 0 {
		b.field["CPUQuota"] = true
		limits["cpu"] = fmt.Sprintf("%dm", q/10)
	}
	if len(limits) > 0 {
		b.container["resources"] = object{"limits": limits}
		b.result.Changed = append(b.result.Changed, "limits are requests, too, unless the manifest is given others: a node without as much free takes no pod")
	}
}

func (b *builder) environment() {
	b.field["Environment"] = true
	for _, assignment := range b.svc.Exec.Environment {
		name, value, _ := strings.Cut(assignment, "=")
		b.setEnv(name, value)
	}
}

// setEnv adds a variable, in the place of one of that name.
func (b *builder) setEnv(name, value string) {
	b.env = slices.DeleteFunc(b.env, func(v any) bool { return v.(object)["name"] == name })
	// $(NAME) would be expanded; a doubled $ is one.
	b.env = append(b.env, object{"name": name, "value": strings.ReplaceAll(value, "$", "$$")})
}

// directories become hostPath volumes where those can give what is asked: a
// directory of root's with mode 0755. All others stay directives.
func (b *builder) directories() {
	x := &b.svc.Exec
	for _, d := range []struct {
		kind, base string
		list       []service.Directory
	}{
		{"Runtime", "/run", x.Runtime}, {"State", "/var/lib", x.State}, {"Cache", "/var/cache", x.Cache}, {"Logs", "/var/log", x.Logs},
	} {
		special := slices.ContainsFunc(d.list, func(e service.Directory) bool { return len(e.Links) > 0 || e.Mode != 0 && e.Mode != 0o755 })
		if special || len(d.list) == 0 || x.User != "" || x.Group != "" || x.RuntimePreserve != "" && d.kind == "Runtime" {
			continue
		}
		b.field[d.kind+"Directory"], b.field[d.kind+"DirectoryMode"] = true, true
		var all []string
		for i, e := range d.list {
			at, name := path.Join(d.base, e.Path), fmt.Sprintf("%s-%d", strings.ToLower(d.kind), i)
			all = append(all, at)
			b.volumes = append(b.volumes, object{"name": name, "hostPath": object{"path": at, "type": "DirectoryOrCreate"}})
			b.mounts = append(b.mounts, object{"name": name, "mountPath": at})
		}
		b.setEnv(strings.ToUpper(d.kind)+"_DIRECTORY", strings.Join(all, ":"))
	}
}

// probe becomes the container's where that can say it: whole seconds, and no
// search in the log.
func (b *builder) probe(kind string, p *service.Probe) {
	if p == nil {
		return
	}
	out := object{}
	host := func(name string) string {
		if name == "" {
			return "127.0.0.1"
		}
		return name
	}
	switch {
	case p.HTTP != nil:
		out["httpGet"] = object{"scheme": strings.ToUpper(p.HTTP.Scheme), "host": host(p.HTTP.Host), "port": p.HTTP.Port, "path": p.HTTP.Path}
	case p.TCP != nil:
		out["tcpSocket"] = object{"host": host(p.TCP.Host), "port": p.TCP.Port}
	case p.Exec != nil && plain(*p.Exec):
		out["exec"] = object{"command": p.Exec.Argv}
	default:
		return
	}
	for name, d := range map[string]time.Duration{"periodSeconds": p.Period, "timeoutSeconds": p.Timeout, "initialDelaySeconds": p.InitialDelay} {
		if d%time.Second != 0 {
			return
		}
		if d > 0 {
			out[name] = int64(d / time.Second)
		}
	}
	if p.FailureThreshold > 0 {
		out["failureThreshold"] = p.FailureThreshold
	}
	for _, suffix := range []string{"", "PeriodSec", "TimeoutSec", "InitialDelaySec", "FailureThreshold"} {
		b.field["X-"+kind+"Probe"+suffix] = true
	}
	b.container[strings.ToLower(kind)+"Probe"] = out
}
