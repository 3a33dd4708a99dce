package hostd

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestInitActions: what a unit asks for is done by process 1 of a container,
// once all others are stopped.
func TestInitActions(t *testing.T) {
	for name, c := range map[string]struct {
		actions string
		code    int
		signal  syscall.Signal
	}{
		"exit":     {actions: "FailureAction=exit", code: 5},
		"status":   {actions: "FailureAction=exit\nFailureActionExitStatus=9", code: 9},
		"poweroff": {actions: "FailureAction=poweroff"},
		// reboot(2): the parent sees SIGHUP.
		"reboot": {actions: "FailureAction=reboot", signal: syscall.SIGHUP},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cmd, out := asInit(t, dir, "true", map[string]string{
				"main.service": "[Unit]\nAfter=side.service\n" + c.actions + "\n[Service]\nExecStart=/bin/sh -c 'exit 5'\n[Install]\nWantedBy=multi-user.target\n",
				"side.service": "[Service]\nType=exec\nExecStart=/bin/sleep 1000\nExecStop=/bin/sh -c 'echo stopped >" + dir + "/side'\n[Install]\nWantedBy=multi-user.target\n",
			})
			err := cmd.Wait()
			status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ok || status.ExitStatus() != c.code && c.signal == 0 || c.signal != 0 && status.Signal() != c.signal {
				t.Errorf("it ended with %v: %s", err, out)
			}
			if data, _ := os.ReadFile(filepath.Join(dir, "side")); string(data) != "stopped\n" {
				t.Errorf("the other service was not stopped: %q: %s", data, out)
			}
		})
	}
}
