package ocispec

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/service"
)

// Holder is the service that holds the PID namespace of a pod whose containers
// share one. No container can have this name.
const Holder = "shared.pid"

// SharesPIDs says whether the containers of a pod have one PID namespace.
func SharesPIDs(pod *v1.Pod) bool {
	s := pod.Spec.ShareProcessNamespace
	return s != nil && *s && !pod.Spec.HostPID
}

const sigKILL = 9

// Hold is the service that holds the PID namespace: a container of nothing but
// the service manager's program, without any right, whose files the others may
// see as those of process 1.
func Hold(pod *v1.Pod, r *Runtime, podDir string) (service.Service, *Refusal) {
	in := Input{Pod: &v1.Pod{}, Container: &v1.Container{}, Runtime: r}
	s := service.Service{
		Name: Holder, Type: service.Exec,
		Restart: service.Restart{Mode: service.RestartAlways, Backoff: &service.Backoff{Initial: time.Second, Max: 300 * time.Second, ResetAfter: 600 * time.Second}},
		// It ignores all others.
		Kill: service.Kill{Mode: service.KillMixed, Signal: sigKILL}, SuccessStatus: service.ExitSet{Signals: []int{sigKILL}},
		TimeoutStop: grace,
	}
	text, err := json.Marshal(&specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: "rootfs", Readonly: true}, Hostname: "pause", Linux: in.linux(),
		Process: &specs.Process{
			Args: []string{service.Pause}, Env: []string{"GOMAXPROCS=1"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
		},
	})
	if err != nil {
		return s, &Refusal{Message: fmt.Sprintf("the configuration of its PID namespace does not encode: %v", err)}
	}
	id := ID(pod, Holder)
	c := &service.Container{
		ID: id, Program: r.Program, Bundle: filepath.Join(podDir, "containers", Holder), State: r.State, Spec: text, Pauses: true,
		Users: OwnUsers(pod),
	}
	s.Exec = service.ExecContext{CleanEnvironment: true, PassEnvironment: []string{"PATH"}, WorkingDirectory: "/", Container: c}
	in.run(&s, c)
	last := r.command("delete", "--force", id)
	last.IgnoreFailure = true
	s.StopPost = []service.Command{last}
	return s, nil
}

// grace is how long the kernel may take to end what is in the namespace.
const grace = 10 * time.Second
