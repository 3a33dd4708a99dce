package unitdir

import "slices"

// The directories in which an administrator's unit files are, and those until
// the next boot.
const (
	systemConfig  = "/etc/systemd/system"
	systemRuntime = "/run/systemd/system"
)

// Config is the directory of the unit path in which an administrator's files
// are, Runtime the one of those until the next boot; it may be empty.
func Config(paths []string) (config, runtime string) {
	if slices.Contains(paths, systemRuntime) {
		runtime = systemRuntime
	}
	if slices.Contains(paths, systemConfig) {
		return systemConfig, runtime
	}
	return paths[0], runtime
}

// Control is the directory of the drop-ins that "systemctl set-property" writes,
// beside Config or Runtime: /etc/systemd/system.control.
func Control(dir string) string { return dir + ".control" }

// WithControl puts the directories of set-property in front of a unit path.
func WithControl(paths []string) []string {
	if len(paths) == 0 {
		return paths
	}
	config, runtime := Config(paths)
	out := []string{Control(config)}
	if runtime != "" {
		out = []string{Control(runtime), Control(config)}
	}
	return append(out, paths...)
}
