package bundle

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// given are the capabilities that legiond has: it cannot give more, and a
// runtime would not start a container that asks for more.
var given = sync.OnceValue(func() func(string) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return func(string) bool { return true }
	}
	return func(name string) bool {
		number := slices.Index(unitfile.Capabilities, name)
		return number < 0 || data[number/32].Permitted&(1<<(number%32)) != 0
	}
})

// bound leaves a process only the capabilities that can be given.
func bound(process map[string]any, has func(string) bool) {
	sets, _ := process["capabilities"].(map[string]any)
	for kind, set := range sets {
		list, _ := set.([]any)
		sets[kind] = slices.DeleteFunc(list, func(name any) bool {
			text, _ := name.(string)
			return !has(text)
		})
	}
}

// Lost names what a container asks for and cannot be given here.
func Lost(c *service.Container) []string { return lost(c, given()) }

func lost(c *service.Container, has func(string) bool) []string {
	var spec struct {
		Process struct {
			Capabilities struct{ Bounding []string }
		}
	}
	if json.Unmarshal(c.Spec, &spec) != nil {
		return nil
	}
	missing := slices.DeleteFunc(spec.Process.Capabilities.Bounding, has)
	if len(missing) == 0 {
		return nil
	}
	return []string{"capabilities: legiond itself has no " + strings.Join(missing, ", ")}
}
