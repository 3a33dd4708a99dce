package cli

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestCutDir(t *testing.T) {
	for _, tt := range []struct {
		in   []string
		dir  string
		rest []string
	}{
		{[]string{"get", "pods"}, "", []string{"get", "pods"}},
		{[]string{"--dir", "d", "get", "pods"}, "d", []string{"get", "pods"}},
		{[]string{"get", "--dir=d", "pods"}, "d", []string{"get", "pods"}},
		{[]string{"exec", "p", "--", "ls", "--dir", "x"}, "", []string{"exec", "p", "--", "ls", "--dir", "x"}},
		{[]string{"get", "--cache-dir", "x"}, "", []string{"get", "--cache-dir", "x"}},
	} {
		dir, rest := cutDir(tt.in)
		if dir != tt.dir || !slices.Equal(rest, tt.rest) {
			t.Errorf("cutDir(%q) = %q, %q, want %q, %q", tt.in, dir, rest, tt.dir, tt.rest)
		}
	}
}

func TestWhichKubeconfig(t *testing.T) {
	there, empty := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(there, "admin.kubeconfig"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := func(env map[string]string) *session {
		return &session{Env: Env{Getenv: func(k string) string { return env[k] }}}
	}
	mine := filepath.Join(there, "admin.kubeconfig")
	for _, tt := range []struct {
		name, dir string
		env       map[string]string
		want      string
		fails     bool
	}{
		{"--dir wins", there, map[string]string{"KUBECONFIG": "other"}, mine, false},
		{"LEGION_DIR wins over KUBECONFIG", "", map[string]string{"LEGION_DIR": there, "KUBECONFIG": "other"}, mine, false},
		{"KUBECONFIG is left alone", "", map[string]string{"KUBECONFIG": "other", "HOME": there}, "", false},
		{"no fleet by default", "", map[string]string{"HOME": empty}, "", false},
		{"no fleet where one was named", empty, nil, "", true},
	} {
		got, err := fleetKubeconfig(s(tt.env), tt.dir)
		if got != tt.want || (err != nil) != tt.fails {
			t.Errorf("%s: got %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}
