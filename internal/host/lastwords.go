package host

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
)

// The kubelet's bounds of a termination message (pkg/kubelet/container).
const (
	mostLastWords = 4096
	mostLogBytes  = 2048
	mostLogLines  = 80
)

// emptyLastWords makes the file in which the next run may say why it ends.
func emptyLastWords(m *service.TerminationMessage) error {
	if m == nil || m.Path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(m.Path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(m.Path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	return file.Chmod(0o666) // whatever the umask
}

// lastWords is what a run has said of its end. It is a few bytes, and read here
// because the next run, which may begin at once, empties the file.
func lastWords(m *service.TerminationMessage) string {
	if m == nil || m.Path == "" {
		return ""
	}
	file, err := os.OpenFile(m.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	text, _ := io.ReadAll(io.LimitReader(file, mostLastWords))
	return strings.ToValidUTF8(string(text), "�")
}

// runtimeWords is what an OCI runtime says of the container that it could not
// start: the last error of its log, a line of JSON each.
func runtimeWords(c *service.Container) string {
	file, err := os.Open(filepath.Join(c.Bundle, service.RuntimeLog))
	if err != nil {
		return ""
	}
	defer func() { _ = file.Close() }()
	last := ""
	for d := json.NewDecoder(io.LimitReader(file, 1<<16)); ; {
		var line struct{ Level, Msg string }
		if d.Decode(&line) != nil {
			return strings.ToValidUTF8(last[:min(len(last), mostLogBytes)], "�")
		}
		if line.Level == "error" {
			last = line.Msg
		}
	}
}

// logWords takes the end of the log for the message of a run that has failed
// and has not said why. It reads beside the loop, until the output has ended.
func (h *Host) logWords(u *unit, run uint64, e service.Exit) {
	m := u.spec.TerminationMessage
	if m == nil || !m.Log || e.Message != "" || e.Signal == 0 && e.Code == 0 || e.Unknown {
		return
	}
	group, name := u.g.spec.Name, u.spec.Name
	go func() {
		ctx, cancel := context.WithTimeout(h.ctx, 10*time.Second)
		defer cancel()
		var out bytes.Buffer
		if err := h.o.Logs.Read(ctx, group, name, hostapi.LogQuery{Run: run, Tail: mostLogLines, Follow: true}, &out); err != nil {
			return // it has written nothing
		}
		text := logTail(out.String())
		if text == "" {
			return
		}
		h.later(func() {
			if u.in.Explain(run, text) {
				h.save(u.g)
				h.dirty[group] = struct{}{}
			}
		})
	}()
}

// logTail is the end of what lines of a log say: "TIME STREAM FLAG TEXT".
func logTail(log string) string {
	lines := strings.SplitAfter(log, "\n")
	if n := len(lines) - 1; n > mostLogLines {
		lines = lines[n-mostLogLines:]
	}
	var b strings.Builder
	for _, line := range lines {
		fields := strings.SplitN(line, " ", 4)
		if len(fields) < 4 {
			continue
		}
		text := fields[3]
		if fields[2] == "P" {
			text = strings.TrimSuffix(text, "\n")
		}
		b.WriteString(text)
	}
	text := b.String()
	return strings.ToValidUTF8(text[max(0, len(text)-mostLogBytes):], "�")
}
