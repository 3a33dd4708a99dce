package runner

import (
	"testing"

	"legion.dev/legion/internal/service"
)

func TestWorkingDirectory(t *testing.T) {
	for _, c := range []struct {
		name     string
		dir      string
		given    bool // with the prefix "-"
		home     string
		root     bool
		want     string
		optional bool
	}{
		{name: "of root it is /", root: true, want: "/"},
		{name: "of a user it is the home, if that can be entered", want: "/home/own", optional: true},
		{name: "as it is written", dir: "/srv", want: "/srv"},
		{name: "the home of User=", dir: "~", home: "/home/other", root: true, want: "/home/other"},
		{name: "the own home", dir: "~", want: "/home/own"},
		{name: "one that may be missing", dir: "/srv", given: true, root: true, want: "/srv", optional: true},
	} {
		x := &service.ExecContext{WorkingDirectory: c.dir, WorkingDirectoryOptional: c.given}
		if dir, optional := workingDirectory(x, c.home, "/home/own", c.root); dir != c.want || optional != c.optional {
			t.Errorf("%s: %s, optional %v; want %s, %v", c.name, dir, optional, c.want, c.optional)
		}
	}
}
