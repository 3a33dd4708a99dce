package runner

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

func TestInputs(t *testing.T) {
	dir := t.TempDir()
	file, pipe, socket := filepath.Join(dir, "file"), filepath.Join(dir, "fifo"), filepath.Join(dir, "sock")
	if err := os.WriteFile(file, []byte("of a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.WriteString(c, "of a socket")
			_ = c.Close()
		}
	}()
	data := []byte(strings.Repeat("a\x00b\n", 100_000))
	for name, c := range map[string]struct{ script, input, want string }{
		"nothing": {"cat", "", ""},
		"data":    {"cat", "data", string(data)},
		"sealed":  {"cat >/dev/null; { echo x >>/proc/self/fd/0; } 2>/dev/null || echo refused", "data", "refused"},
		"file":    {"cat", "file:" + file, "of a file"},
		"fifo":    {"echo line >" + pipe + " & read x; echo $x", "file:" + pipe, "line\n"},
		"socket":  {"cat", "file:" + socket, "of a socket"},
	} {
		q := shell(c.script)
		q.Context = &service.ExecContext{StandardInput: c.input, InputData: data}
		if got := output(t, q); got != strings.TrimSpace(c.want) {
			t.Errorf("%s: %.100q, want %.100q", name, got, c.want)
		}
	}
	q := shell("true")
	q.Context = &service.ExecContext{StandardInput: "file:" + dir + "/missing"}
	if _, err := shared.Start(q); err == nil || !strings.Contains(err.Error(), "standard input") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestSearchPath(t *testing.T) {
	dir := t.TempDir()
	tool := filepath.Join(dir, "sh")
	if err := os.WriteFile(tool, []byte("#!/bin/sh\necho own $PATH\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		context service.ExecContext
		want    string
	}{
		{service.ExecContext{SearchPath: []string{"/nonexistent", dir}}, "own /nonexistent:" + dir},
		{service.ExecContext{SearchPath: []string{dir}, Environment: []string{"PATH=/bin"}}, "own /bin"},
		{service.ExecContext{}, DefaultPath},
	} {
		q := Request{Group: "g", Command: service.Command{Path: "sh", Argv: []string{"sh", "-c", "echo $PATH"}, NoExpand: true}, Context: &c.context}
		if got := output(t, q); got != c.want {
			t.Errorf("%q, %q: %q, want %q", c.context.SearchPath, c.context.Environment, got, c.want)
		}
	}
	q := Request{Group: "g", Command: service.Command{Path: "cat"}, Context: &service.ExecContext{SearchPath: []string{dir}}}
	if _, err := shared.Start(q); err == nil || !strings.Contains(err.Error(), "no such command in "+dir) {
		t.Errorf("what is in PATH alone: %v", err)
	}
}
