package debian

import (
	"os"
	"strings"
	"testing"
	"time"
)

// spokenUnit speaks to systemd's journal in the ways that Debian's programs have:
// fields in a datagram, a file in its place where they are long, and a stream, by
// Debian's own systemd-cat where it is installed.
const spokenUnit = `[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -ec 'printf "MESSAGE=by logger\nPRIORITY=3\nSYSLOG_IDENTIFIER=fields\n" | logger --journald'
ExecStart=sh -ec '{ printf "SYSLOG_IDENTIFIER=long\nMESSAGE="; head -c 400000 /dev/zero | tr "\\0" x; printf "\n"; } | logger --journald'
ExecStart=sh -ec 'if [ -e /usr/local/bin/debians-cat ]; then debians-cat -t tagged -p warning echo by systemd-cat; fi'
`

// speaks sees what is said to systemd's journal in the log of the unit that says
// it, with its priority.
func (m *machine) speaks(t *testing.T) {
	m.write(t, "/etc/systemd/system/spoken.service", spokenUnit)
	m.run(t, "systemctl", "start", "spoken.service")
	want := []string{"fields[", "]: by logger", "long[", strings.Repeat("x", 10000)}
	if _, err := os.Stat(m.path("/usr/local/bin/debians-cat")); err == nil {
		want = append(want, "tagged[", "]: by systemd-cat")
	}
	all := m.shows(t, want, "journalctl", "--no-pager", "-u", "spoken.service")
	if n := strings.Count(all, "x"); n < 400000 {
		t.Errorf("of the long message %d bytes are there", n)
	}
	errors := m.shows(t, want[:2], "journalctl", "--no-pager", "-p", "err", "-u", "spoken.service")
	if strings.Contains(errors, "systemd-cat") || strings.Contains(errors, "xxx") {
		t.Errorf("as errors are shown:\n%.2000s", errors)
	}
	m.run(t, "systemctl", "stop", "spoken.service")
	m.run(t, "rm", "/etc/systemd/system/spoken.service")
	m.run(t, "systemctl", "daemon-reload")
}

// shows runs a command until its output has all the texts.
func (m *machine) shows(t *testing.T, want []string, args ...string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		out := m.run(t, args...)
		missing := ""
		for _, w := range want {
			if !strings.Contains(out, w) {
				missing = w
			}
		}
		if missing == "" {
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s shows no %.100q: %.2000s", strings.Join(args, " "), missing, out)
		}
	}
}
