package bundle

import (
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// A program that links this package can hold a PID namespace, whatever its main
// does.
func init() {
	if len(os.Args) == 1 && os.Args[0] == service.Pause {
		// Nobody in the namespace can end it, and the kernel collects the
		// orphans of one whose first process ignores SIGCHLD (wait(2)).
		signal.Ignore()
		for {
			_ = unix.Pause() // it returns after a signal only
		}
	}
}

// pause is the mount by which a container sees the program of this process.
func pause() (map[string]any, error) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("find the program that holds the PID namespace: %w", err)
	}
	// Where another has been put in its place, that one will do.
	program = strings.TrimSuffix(program, " (deleted)")
	return map[string]any{"destination": service.Pause, "type": "bind", "source": program, "options": []string{"bind", "ro", "nosuid", "nodev"}}, nil
}

// joinPIDs puts a container into the PID namespace of a process.
func joinPIDs(linux map[string]any, holder int) {
	list, _ := linux["namespaces"].([]any)
	linux["namespaces"] = append(list, map[string]any{"type": "pid", "path": fmt.Sprintf("/proc/%d/ns/pid", holder)})
}
