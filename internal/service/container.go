package service

import "encoding/json"

// RuntimeLog is where, in a container's bundle, its runtime says in lines of
// JSON what went wrong.
const RuntimeLog = "runtime.log"

// ConsoleSocket is where, in a container's bundle, its runtime passes on the
// terminal that it makes for the container.
const ConsoleSocket = "console.sock"

// Pause is where a container that is there only for its PID namespace sees the
// service manager's own program, and the name by which it then waits for its
// end.
const Pause = "/legion-pause"

// Images are the IDs of the images that the group is run from, or shows to its
// services.
func (g *Group) Images() []string {
	var out []string
	for i := range g.Services {
		exec := &g.Services[i].Exec
		if c := exec.Container; c != nil && c.Image != "" {
			out = append(out, c.Image)
		}
		for k := range exec.Mounts {
			if files := exec.Mounts[k].Image; files != nil {
				out = append(out, files.ID)
			}
		}
	}
	return out
}

// Container makes the main process that of an OCI runtime, which runs a
// container in the foreground (the OCI's runtime-spec). The Mounts of the
// ExecContext are then the container's. Commands with FullPrivileges run on the
// host.
type Container struct {
	// ID names the container to the runtime; unique on the machine.
	ID string `json:"id"`
	// Program is the runtime's path.
	Program string `json:"program"`
	// Bundle is the directory that is made for it.
	Bundle string `json:"bundle"`
	// State is the runtime's directory for its containers.
	State string `json:"state"`
	// Image is the ID of the image, Layers are its directories, lowest first.
	Image  string   `json:"image"`
	Layers []string `json:"layers"`
	// Copied: the root file system is not made of Layers but is there, as a
	// copy, once the StartPre commands have run.
	Copied bool `json:"copied,omitempty"`
	// Pauses: its program is Pause.
	Pauses bool `json:"pauses,omitempty"`
	// PIDs, where not empty, is the service of the group whose PID namespace it
	// is in, that of the service's main process.
	PIDs string `json:"pids,omitempty"`
	// Users: it is in a user namespace, with users that its pod has for itself.
	Users bool `json:"users,omitempty"`
	// Spec is the runtime's configuration without what only the host knows:
	// where the root is, the mounts of the volumes, the cgroup.
	Spec json.RawMessage `json:"spec"`
}

// Console is what a service reads from where somebody may attach to it: a pipe,
// or a terminal, which then takes its output, too.
type Console struct {
	// Stdin: who attaches may write.
	Stdin bool `json:"stdin,omitempty"`
	// Once closes a pipe when the first who was attached with an input leaves;
	// else the service never sees its end. A terminal stays open.
	Once     bool `json:"once,omitempty"`
	Terminal bool `json:"terminal,omitempty"`
}

// Terminal says whether the main process has one.
func (c *ExecContext) Terminal() bool { return c.Console != nil && c.Console.Terminal }
