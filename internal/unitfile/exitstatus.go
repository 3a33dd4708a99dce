package unitfile

import (
	"fmt"
	"slices"

	"legion.dev/legion/internal/service"
)

// exitNames are the names of exit statuses in systemd.exec(5), "Process Exit
// Codes": of the C library, of LSB scripts, of BSD's sysexits, of systemd.
var exitNames = map[string]int{
	"SUCCESS": 0, "FAILURE": 1,
	"INVALIDARGUMENT": 2, "NOTIMPLEMENTED": 3, "NOPERMISSION": 4, "NOTINSTALLED": 5, "NOTCONFIGURED": 6, "NOTRUNNING": 7,
	"USAGE": 64, "DATAERR": 65, "NOINPUT": 66, "NOUSER": 67, "NOHOST": 68, "UNAVAILABLE": 69, "SOFTWARE": 70,
	"OSERR": 71, "OSFILE": 72, "CANTCREAT": 73, "IOERR": 74, "TEMPFAIL": 75, "PROTOCOL": 76, "NOPERM": 77, "CONFIG": 78,
	"CHDIR": 200, "NICE": 201, "FDS": 202, "EXEC": 203, "MEMORY": 204, "LIMITS": 205, "OOM_ADJUST": 206,
	"SIGNAL_MASK": 207, "STDIN": 208, "STDOUT": 209, "CHROOT": 210, "IOPRIO": 211, "TIMERSLACK": 212, "SECUREBITS": 213,
	"SETSCHEDULER": 214, "CPUAFFINITY": 215, "GROUP": 216, "USER": 217, "CAPABILITIES": 218, "CGROUP": 219, "SETSID": 220,
	"CONFIRM": 221, "STDERR": 222, "PAM": 224, "NETWORK": 225, "NAMESPACE": 226, "NO_NEW_PRIVILEGES": 227, "SECCOMP": 228,
	"SELINUX_CONTEXT": 229, "PERSONALITY": 230, "APPARMOR": 231, "ADDRESS_FAMILIES": 232, "RUNTIME_DIRECTORY": 233,
	"CHOWN": 235, "SMACK_PROCESS_LABEL": 236, "KEYRING": 237, "STATE_DIRECTORY": 238, "CACHE_DIRECTORY": 239,
	"LOGS_DIRECTORY": 240, "CONFIGURATION_DIRECTORY": 241, "NUMA_POLICY": 242, "CREDENTIALS": 243, "BPF": 244,
}

// exits takes exit statuses and signals, by number or name; the empty value
// resets.
func exits(field func(*service.Service) *service.ExitSet) setter {
	return func(c *compiler, e Entry) error {
		to := field(&c.svc)
		if e.Value == "" {
			*to = service.ExitSet{}
			return nil
		}
		words, err := Split(e.Value)
		if err != nil {
			return err
		}
		for _, w := range words {
			if err := addExit(to, w); err != nil {
				c.warn(e, "ignored: %v", err)
			}
		}
		return nil
	}
}

func addExit(to *service.ExitSet, w string) error {
	if code, ok := exitNames[w]; ok {
		to.Codes = addNumber(to.Codes, code)
		return nil
	}
	// A number is an exit status here, never a signal.
	if n, err := ParseInt(w, 64); err == nil {
		if n < 0 || n > 255 {
			return outOfRange("exit status", w)
		}
		to.Codes = addNumber(to.Codes, int(n))
		return nil
	}
	n, err := ParseSignal(w)
	if err != nil {
		return fmt.Errorf("%w: %q is neither an exit status nor a signal", ErrInvalid, w)
	}
	to.Signals = addNumber(to.Signals, n)
	return nil
}

func addNumber(to []int, n int) []int {
	if slices.Contains(to, n) {
		return to
	}
	return append(to, n)
}
