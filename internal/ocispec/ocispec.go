// Package ocispec makes a container of an image of what package podspec has
// compiled for a process: the OCI's runtime configuration, and the commands by
// which the service manager runs it with an OCI runtime. It is pure.
package ocispec

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// Image is what running an image needs to know of it.
type Image struct {
	// ID is the digest of its configuration, Ref what the status shows.
	ID, Ref string
	// Layers are its directories, lowest first; with Copied one, to be copied.
	Layers []string
	Copied bool

	Entrypoint, Cmd, Env         []string
	User, WorkingDir, StopSignal string
	// Passwd and Group are the texts of its own files.
	Passwd, Group string
}

// Runtime is the node's OCI runtime.
type Runtime struct {
	// Program is its path, State its directory for its containers.
	Program, State string
}

// Input is all that a container is made of beside its service.
type Input struct {
	Pod       *v1.Pod
	Container *v1.Container
	Image     *Image
	Runtime   *Runtime
	// Seccomp is the node's profile that the container names.
	Seccomp Profile
	// Domain is the cluster's, of the names of pods.
	Domain string
	// Target is the container whose PID namespace it is in, empty for its own.
	Target string
	// Node is the node's name, PodDir where the pod's files lie.
	Node, PodDir string
}

// Refusal is why a container cannot be made; Config says that it lies in the
// pod's own words, as CreateContainerConfigError does.
type Refusal struct {
	Config  bool
	Message string
}

func (r *Refusal) Error() string { return r.Message }

// ID is the container's name for the OCI runtime.
func ID(pod *v1.Pod, container string) string { return "pod-" + string(pod.UID) + "-" + container }

// Contain turns a service that was compiled for a process of the host into one
// of a container.
func Contain(s *service.Service, in Input) *Refusal {
	if OwnUsers(in.Pod) && in.Image.Copied {
		return &Refusal{Message: "hostUsers: false needs overlayfs, which the node has not"}
	}
	spec, refusal := configuration(s, in)
	if refusal != nil {
		return refusal
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return &Refusal{Message: fmt.Sprintf("its configuration does not encode: %v", err)}
	}
	id := ID(in.Pod, in.Container.Name)
	c := &service.Container{
		ID: id, Program: in.Runtime.Program, Bundle: filepath.Join(in.PodDir, "containers", in.Container.Name), State: in.Runtime.State,
		Image: in.Image.ID, Layers: in.Image.Layers, Copied: in.Image.Copied, Spec: text,
		Users: OwnUsers(in.Pod),
	}
	s.Exec = service.ExecContext{
		CleanEnvironment: true, PassEnvironment: []string{"PATH"}, WorkingDirectory: "/",
		Mounts: s.Exec.Mounts, Container: c, Console: s.Exec.Console, FileVariables: s.Exec.FileVariables,
		// Inherited from the runtime: it would not start a container that it
		// cannot give this, as where there is no CAP_SYS_RESOURCE.
		OOMScoreAdjust: s.Exec.OOMScoreAdjust,
	}
	switch {
	case SharesPIDs(in.Pod):
		c.PIDs = Holder
	case !in.Pod.Spec.HostPID:
		c.PIDs = in.Target
	}
	in.run(s, c)
	if c.Copied {
		s.StartPre = append(copying(c), s.StartPre...)
	}
	last := in.Runtime.command("delete", "--force", id)
	last.IgnoreFailure = true
	s.StopPost = append(s.StopPost, last)
	in.inside(s, id)
	if text := in.Image.StopSignal; text != "" && !in.ownSignal() {
		n, err := unitfile.ParseSignal(strings.ToUpper(text))
		if err != nil {
			return &Refusal{Message: fmt.Sprintf("the image's STOPSIGNAL: %v", err)}
		}
		s.Kill.Signal = n
	}
	return nil
}

// ownSignal: the container says which signal it is asked to end by.
func (in *Input) ownSignal() bool {
	l := in.Container.Lifecycle
	return l != nil && l.StopSignal != nil
}

// run has the runtime start the container. It ends once the container's first
// process runs, which is then the service's main process: nothing of the
// runtime stays beside it. What is to run to its end is run in the foreground.
func (in *Input) run(s *service.Service, c *service.Container) {
	words := []string{"run", "--bundle", c.Bundle}
	if s.Type != service.Oneshot {
		s.Type, s.PIDFile = service.Forking, filepath.Join(c.Bundle, "pid")
		words = append(words, "--detach", "--pid-file", s.PIDFile)
		if s.Exec.Terminal() {
			// Of the bundle, where the runtime is started: its full path may be
			// longer than a socket's address.
			words = append(words, "--console-socket", service.ConsoleSocket)
		}
	}
	start := in.Runtime.command(append(words, c.ID)...)
	// Why it cannot start a container is shown with the container.
	start.Argv = slices.Insert(start.Argv, 1, "--log", filepath.Join(c.Bundle, service.RuntimeLog), "--log-format", "json")
	start.FullPrivileges = false
	s.Start = []service.Command{start}
}

// command is one of the runtime's own, run on the host.
func (r *Runtime) command(args ...string) service.Command {
	argv := append([]string{filepath.Base(r.Program), "--root", r.State}, args...)
	return service.Command{Path: r.Program, Argv: argv, NoExpand: true, FullPrivileges: true}
}

// Inside is the command that runs another one in a container.
func (r *Runtime) Inside(id string, argv []string) service.Command {
	return r.command(append([]string{"exec", id}, argv...)...)
}

// inside has the hooks and probes that are commands run in the container. A
// hook that only waits waits on the host.
func (in *Input) inside(s *service.Service, id string) {
	wrap := func(list []service.Command, h *v1.LifecycleHandler) {
		for i := range list {
			if h != nil && h.Sleep != nil {
				list[i].FullPrivileges = true
				continue
			}
			if list[i].HTTP != nil {
				continue // a request is legiond's own
			}
			w := in.Runtime.Inside(id, list[i].Argv)
			w.IgnoreFailure = list[i].IgnoreFailure
			list[i] = w
		}
	}
	var start, stop *v1.LifecycleHandler
	if l := in.Container.Lifecycle; l != nil {
		start, stop = l.PostStart, l.PreStop
	}
	wrap(s.StartPost, start)
	wrap(s.Stop, stop)
	for _, p := range []*service.Probe{s.Readiness, s.Liveness, s.Startup} {
		if p != nil && p.Exec != nil {
			w := in.Runtime.Inside(id, p.Exec.Argv)
			p.Exec = &w
		}
	}
}

// copying are the commands that make the root file system anew where there is
// no overlayfs.
func copying(c *service.Container) []service.Command {
	root := filepath.Join(c.Bundle, "rootfs")
	on := func(argv ...string) service.Command {
		return service.Command{Path: argv[0], Argv: argv, NoExpand: true, FullPrivileges: true}
	}
	return []service.Command{
		on("rm", "-rf", "--one-file-system", root),
		on("mkdir", "-p", c.Bundle),
		on("cp", "-a", "--reflink=auto", c.Layers[0], root),
	}
}

// configuration is the runtime's, without what only the host knows.
func configuration(s *service.Service, in Input) (*specs.Spec, *Refusal) {
	argv, refusal := in.argv(s)
	if refusal != nil {
		return nil, refusal
	}
	who, refusal := in.user(s)
	if refusal != nil {
		return nil, refusal
	}
	caps := capabilities(in.Container.SecurityContext)
	p := &specs.Process{
		User: who, Args: argv, Env: in.environment(s), Cwd: "/",
		Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		NoNewPrivileges: s.Exec.NoNewPrivileges, Terminal: s.Exec.Terminal(),
	}
	for _, dir := range []string{in.Image.WorkingDir, in.Container.WorkingDir} {
		if dir != "" {
			p.Cwd = dir
		}
	}
	spec := &specs.Spec{
		Version: "1.0.2", Process: p,
		Root:   &specs.Root{Path: "rootfs", Readonly: s.Exec.ReadOnlyRoot},
		Mounts: in.mounts(s), Linux: in.linux(),
	}
	if !in.Pod.Spec.HostNetwork {
		host, refusal := Hostname(in.Pod, in.Domain)
		if refusal != nil {
			return nil, refusal
		}
		spec.Hostname = host
	}
	return spec, in.filter(spec)
}

// argv is command and args over ENTRYPOINT and CMD, as Kubernetes has it: a
// command takes the place of both.
func (in *Input) argv(s *service.Service) ([]string, *Refusal) {
	var words []string
	if len(s.Start) > 0 {
		words = s.Start[0].Argv // command, then args
	}
	switch {
	case len(in.Container.Command) > 0:
	case len(words) > 0:
		words = slices.Concat(in.Image.Entrypoint, words)
	default:
		words = slices.Concat(in.Image.Entrypoint, in.Image.Cmd)
	}
	if len(words) == 0 || words[0] == "" {
		return nil, &Refusal{Message: "no command specified: neither the image nor the container has one"}
	}
	return words, nil
}

// usualPath is a container's PATH where the image has none.
const usualPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the image's, then the container's.
func (in *Input) environment(s *service.Service) []string {
	var names []string
	values := map[string]string{}
	set := func(list ...string) {
		for _, one := range list {
			name, value, _ := strings.Cut(one, "=")
			if _, ok := values[name]; !ok {
				names = append(names, name)
			}
			values[name] = value
		}
	}
	set(usualPath)
	set(in.Image.Env...)
	set(s.Exec.Environment...)
	if values["HOSTNAME"] == in.Node && !in.Pod.Spec.HostNetwork {
		values["HOSTNAME"], _ = Hostname(in.Pod, in.Domain)
	}
	out := make([]string, 0, len(names))
	for _, n := range names {
		out = append(out, n+"="+values[n])
	}
	return out
}

// user is who the process is: the pod's word before the image's. Names are
// looked up in the image's own files.
func (in *Input) user(s *service.Service) (specs.User, *Refusal) {
	want := s.Exec.User
	if refusal := in.nonRoot(want); refusal != nil {
		return specs.User{}, refusal
	}
	if want == "" {
		want = in.Image.User
	}
	if s.Exec.Group != "" {
		name, _, _ := strings.Cut(want, ":")
		want = name + ":" + s.Exec.Group
	}
	who, err := user.GetExecUser(want, &user.ExecUser{Home: "/"}, strings.NewReader(in.Image.Passwd), strings.NewReader(in.Image.Group))
	if err != nil {
		return specs.User{}, &Refusal{Message: fmt.Sprintf("user %q is not to be found in the image: %v", want, err)}
	}
	// The groups that the image has the user in are its in any case.
	name, _, _ := strings.Cut(want, ":")
	if all, err := user.GetExecUser(name, &user.ExecUser{}, strings.NewReader(in.Image.Passwd), strings.NewReader(in.Image.Group)); err == nil {
		who.Sgids = all.Sgids
	}
	out := specs.User{UID: uint32(who.Uid), GID: uint32(who.Gid)}
	add := func(n int) {
		if g := uint32(n); !slices.Contains(out.AdditionalGids, g) {
			out.AdditionalGids = append(out.AdditionalGids, g)
		}
	}
	if p := in.Pod.Spec.SecurityContext; p == nil || p.SupplementalGroupsPolicy == nil || *p.SupplementalGroupsPolicy != v1.SupplementalGroupsPolicyStrict {
		for _, n := range who.Sgids {
			add(n)
		}
	}
	for _, text := range s.Exec.SupplementaryGroups {
		if n, err := strconv.Atoi(text); err == nil {
			add(n)
		}
	}
	return out, nil
}

// nonRoot holds the container to runAsNonRoot, in the kubelet's words
// (pkg/kubelet/kuberuntime/security_context.go).
func (in *Input) nonRoot(want string) *Refusal {
	var asked *bool
	if p := in.Pod.Spec.SecurityContext; p != nil {
		asked = p.RunAsNonRoot
	}
	if c := in.Container.SecurityContext; c != nil && c.RunAsNonRoot != nil {
		asked = c.RunAsNonRoot
	}
	if asked == nil || !*asked {
		return nil
	}
	refuse := func(format string, args ...any) *Refusal {
		pod := in.Pod.Name + "_" + in.Pod.Namespace + "(" + string(in.Pod.UID) + ")"
		return &Refusal{Config: true, Message: fmt.Sprintf(format, args...) + fmt.Sprintf(" (pod: %q, container: %s)", pod, in.Container.Name)}
	}
	if want != "" {
		if want == "0" {
			return refuse("container's runAsUser breaks non-root policy")
		}
		return nil
	}
	name, _, _ := strings.Cut(in.Image.User, ":")
	uid, err := strconv.Atoi(name)
	switch {
	case name == "" || (err == nil && uid == 0):
		return refuse("container has runAsNonRoot and image will run as root")
	case err != nil:
		return refuse("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root", name)
	}
	return nil
}
