package podspec

import (
	"path"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"

	"legion.dev/legion/internal/service"
)

// Linux's numbers.
const (
	sigHUP  = 1
	sigINT  = 2
	sigPIPE = 13
	sigTERM = 15
)

// container compiles one container; an init container runs to its end.
func (c *compiler) container(ctr *v1.Container, at string) service.Service {
	c.containerFields(ctr, at)
	kind := service.Exec
	if strings.HasPrefix(at, "spec.initContainers") && !Sidecar(ctr) {
		kind = service.Oneshot
	}
	s := service.Service{
		Name:        ctr.Name,
		Type:        kind,
		Restart:     c.restart(ctr, kind),
		Kill:        service.Kill{Mode: service.KillMixed, Signal: sigTERM},
		TimeoutStop: grace(c.pod),
		Exec: service.ExecContext{
			CleanEnvironment: true,
			WorkingDirectory: ctr.WorkingDir,
			Console:          Console(ctr),
		},
	}
	if s.Exec.WorkingDirectory == "" {
		s.Exec.WorkingDirectory = "/"
	}
	if !path.IsAbs(s.Exec.WorkingDirectory) {
		c.block(ctr.Name, ConfigError, "%s.workingDir %q is not absolute: runtime %q has no image to start from; give the full path", at, ctr.WorkingDir, HostRuntime)
	}

	env := c.environment(ctr, at)
	s.Exec.Environment, s.Exec.FileVariables = env.list(), env.files
	if _, set := env.values["PATH"]; !set {
		s.Exec.PassEnvironment = []string{"PATH"}
	}

	c.terminationMessage(ctr, &s)
	if c.node.Root {
		s.Exec.Mounts = append(s.Exec.Mounts, c.mounts(ctr, at, env)...)
		s.Exec.Mounts = append(s.Exec.Mounts, c.etcMounts(ctr)...)
		s.Exec.CapabilityBoundingSet = c.capabilities(ctr, at)
		s.Exec.OOMScoreAdjust = c.oomScore(ctr)
		s.Resources, s.Fixed = c.limits(ctr), fixed(ctr)
		s.Exec.ReadOnlyRoot = ctr.SecurityContext != nil && isTrue(ctr.SecurityContext.ReadOnlyRootFilesystem)
	}

	c.seccomp(ctr, &s.Exec)

	expand := expansion.MappingFuncFor(env.values)
	argv := make([]string, 0, len(ctr.Command)+len(ctr.Args))
	for _, word := range append(append([]string{}, ctr.Command...), ctr.Args...) {
		argv = append(argv, expansion.Expand(word, expand))
	}
	switch {
	case OCI(c.pod):
		s.Start = []service.Command{{Argv: argv}}
	case len(ctr.Command) == 0 && c.pod.Annotations[UnitAnnotation+ctr.Name] != "":
		// ExecStart= of the annotation is the command.
	case len(ctr.Command) == 0 || argv[0] == "":
		c.block(ctr.Name, ConfigError, "container %q has no command: runtime %q runs programs of the node, there is no image whose entrypoint could be taken; set %s.command", ctr.Name, HostRuntime, at)
		return s
	default:
		s.Start = []service.Command{command(argv)}
	}
	c.user(ctr, at, &s.Exec)
	c.hooks(ctr, at, &s)
	s.Readiness = c.probe(ctr, ctr.ReadinessProbe, at+".readinessProbe")
	s.Liveness = c.probe(ctr, ctr.LivenessProbe, at+".livenessProbe")
	s.Startup = c.probe(ctr, ctr.StartupProbe, at+".startupProbe")
	c.directives(ctr, &s)
	c.contain(ctr, &s)
	return s
}

// terminationMessage gives the container a file of its own for why it ended.
func (c *compiler) terminationMessage(ctr *v1.Container, s *service.Service) {
	m := service.TerminationMessage{Log: ctr.TerminationMessagePolicy == v1.TerminationMessageFallbackToLogsOnError}
	if c.node.Root && ctr.TerminationMessagePath != "" {
		m.Path = path.Join(c.node.PodDir, string(c.pod.UID), "containers", ctr.Name, "termination-log")
		s.Exec.Mounts = append(s.Exec.Mounts, service.Mount{Source: m.Path, Target: path.Join("/", ctr.TerminationMessagePath), Is: "File"})
	}
	if m != (service.TerminationMessage{}) {
		s.TerminationMessage = &m
	}
}

// Console is what a container reads from where one may attach to it.
func Console(ctr *v1.Container) *service.Console {
	if !ctr.Stdin && !ctr.TTY {
		return nil
	}
	return &service.Console{Stdin: ctr.Stdin, Once: ctr.StdinOnce, Terminal: ctr.TTY}
}

func command(argv []string) service.Command {
	return service.Command{Path: argv[0], Argv: argv, NoExpand: true}
}

// restart is the kubelet's rule: at once, then from 10 s doubling to 5 min,
// forgotten after 10 min (pkg/kubelet/kubelet.go, MaxCrashLoopBackOff).
func (c *compiler) restart(ctr *v1.Container, kind service.Type) service.Restart {
	policy := policyOf(c.pod, ctr)
	r := service.Restart{Backoff: &service.Backoff{
		Initial: 10 * time.Second, Max: 300 * time.Second, ResetAfter: 600 * time.Second,
	}}
	switch {
	case policy == v1.RestartPolicyNever && len(ctr.RestartPolicyRules) == 0:
		return service.Restart{Mode: service.RestartNo}
	case policy == v1.RestartPolicyNever:
		r.Mode = service.RestartNo
	case policy == v1.RestartPolicyOnFailure, kind == service.Oneshot:
		r.Mode = service.RestartOnFailure
		// A unit that ends by one of these ended cleanly; a container did not.
		r.Force.Signals = []int{sigHUP, sigINT, sigPIPE, sigTERM}
	default:
		r.Mode = service.RestartAlways
	}
	ruled(ctr, &r)
	return r
}

// user maps securityContext's identities, the container's before the pod's.
func (c *compiler) user(ctr *v1.Container, at string, exec *service.ExecContext) {
	var uid, gid *int64
	if p := c.pod.Spec.SecurityContext; p != nil {
		uid, gid = p.RunAsUser, p.RunAsGroup
		for _, g := range p.SupplementalGroups {
			exec.SupplementaryGroups = append(exec.SupplementaryGroups, strconv.FormatInt(g, 10))
		}
		if p.FSGroup != nil && c.node.Root {
			exec.SupplementaryGroups = append(exec.SupplementaryGroups, strconv.FormatInt(*p.FSGroup, 10))
		}
	}
	if s := ctr.SecurityContext; s != nil {
		if s.RunAsUser != nil {
			uid = s.RunAsUser
		}
		if s.RunAsGroup != nil {
			gid = s.RunAsGroup
		}
		if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
			exec.NoNewPrivileges = true
		}
	}
	if uid != nil {
		exec.User = strconv.FormatInt(*uid, 10)
	}
	if gid != nil {
		exec.Group = strconv.FormatInt(*gid, 10)
	}
	if root := (uid == nil && c.node.Root) || (uid != nil && *uid == 0); c.nonRoot(ctr) && root && !OCI(c.pod) {
		c.block(ctr.Name, ConfigError, "container %q has runAsNonRoot and would run as root on node %s: set %s.securityContext.runAsUser to another user's number", ctr.Name, c.node.Name, at)
	}
}

// probe maps a probe; what has no port or no action to map blocks or is missed.
func (c *compiler) probe(ctr *v1.Container, p *v1.Probe, at string) *service.Probe {
	if p == nil {
		return nil
	}
	out := &service.Probe{
		InitialDelay:     time.Duration(p.InitialDelaySeconds) * time.Second,
		Period:           time.Duration(p.PeriodSeconds) * time.Second,
		Timeout:          time.Duration(p.TimeoutSeconds) * time.Second,
		SuccessThreshold: int(p.SuccessThreshold),
		FailureThreshold: int(p.FailureThreshold),
	}
	if g := p.TerminationGracePeriodSeconds; g != nil {
		out.Grace = time.Duration(max(*g, 1)) * time.Second
	}
	switch {
	case p.HTTPGet != nil:
		out.HTTP = c.http(ctr, p.HTTPGet, at+".httpGet")
	case p.TCPSocket != nil:
		out.TCP = &service.TCPProbe{Host: p.TCPSocket.Host}
		if out.TCP.Host == "" {
			out.TCP.Host = c.node.IP
		}
		out.TCP.Port = c.port(ctr, p.TCPSocket.Port, at+".tcpSocket.port")
	case p.Exec != nil && len(p.Exec.Command) > 0:
		cmd := command(p.Exec.Command)
		out.Exec = &cmd
	case p.GRPC != nil:
		out.GRPC = &service.GRPCProbe{Host: c.node.IP, Port: int(p.GRPC.Port)}
		if p.GRPC.Service != nil {
			out.GRPC.Service = *p.GRPC.Service
		}
	default:
		c.miss("%s", at)
		return nil
	}
	return out
}

// http is a request of a probe or a hook; it goes to the pod where it does not
// say to whom.
func (c *compiler) http(ctr *v1.Container, h *v1.HTTPGetAction, at string) *service.HTTPProbe {
	out := &service.HTTPProbe{Scheme: strings.ToLower(string(h.Scheme)), Host: h.Host, Path: h.Path, Port: c.port(ctr, h.Port, at+".port")}
	if out.Host == "" {
		out.Host = c.node.IP
	}
	for _, header := range h.HTTPHeaders {
		out.Headers = append(out.Headers, [2]string{header.Name, header.Value})
	}
	return out
}

// port resolves a probe's port, which may be the name of a container port.
func (c *compiler) port(ctr *v1.Container, p intstr.IntOrString, at string) int {
	if p.Type == intstr.Int {
		return p.IntValue()
	}
	for _, named := range ctr.Ports {
		if named.Name == p.StrVal {
			return int(named.ContainerPort)
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n
	}
	c.block(ctr.Name, ConfigError, "%s is %q and container %q has no port of that name: add it to its ports or give the number", at, p.StrVal, ctr.Name)
	return 0
}
