package unitlink

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree makes a root directory from the files; "-> x" is a link to x.
func tree(t *testing.T, files map[string]string) *Tree {
	t.Helper()
	root := t.TempDir()
	for path, text := range files {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(to, full)
		} else {
			err = os.WriteFile(full, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return &Tree{
		Root: root, Paths: []string{"/etc/systemd/system", "/run/systemd/system", "/lib/systemd/system"},
		Config: "/etc/systemd/system", Runtime: "/run/systemd/system",
	}
}

func messages(changes []Change) string {
	var out []string
	for _, c := range changes {
		out = append(out, c.String())
	}
	return strings.Join(out, "\n")
}

const wanted = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"

func TestEnable(t *testing.T) {
	tr := tree(t, map[string]string{
		"lib/systemd/system/ssh.service":  wanted + "Alias=sshd.service\nAlso=ssh.socket\n",
		"lib/systemd/system/ssh.socket":   "[Socket]\nListenStream=22\n[Install]\nRequiredBy=sockets.target\n",
		"lib/systemd/system/get@.service": "[Install]\nWantedBy=get.target\nDefaultInstance=one\n",
		"lib/systemd/system/raw@.service": "[Install]\nWantedBy=%i.target\n",
		"lib/systemd/system/none.service": "[Service]\nExecStart=/bin/true\n",
	})
	for _, c := range []struct{ unit, want, err string }{
		{unit: "ssh.service", want: `Created symlink /etc/systemd/system/sshd.service → /lib/systemd/system/ssh.service.
Created symlink /etc/systemd/system/multi-user.target.wants/ssh.service → /lib/systemd/system/ssh.service.
Created symlink /etc/systemd/system/sockets.target.requires/ssh.socket → /lib/systemd/system/ssh.socket.`},
		{unit: "ssh.service"}, // all is there
		{unit: "get@.service", want: `Created symlink /etc/systemd/system/get.target.wants/get@one.service → /lib/systemd/system/get@.service.`},
		{unit: "raw@a.service", want: `Created symlink /etc/systemd/system/a.target.wants/raw@a.service → /lib/systemd/system/raw@.service.`},
		{unit: "raw@.service", err: "name an instance"},
		{unit: "gone.service", err: "unit file gone.service does not exist"},
	} {
		changes, _, err := tr.Enable([]string{c.unit}, How{})
		if got := strings.ReplaceAll(messages(changes), tr.Root, ""); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", c.unit, got, c.want)
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", c.unit, err, c.err)
		}
	}
	if _, none, err := tr.Enable([]string{"none.service"}, How{}); err != nil || !slices.Equal(none, []string{"none.service"}) {
		t.Errorf("a unit without [Install]: %v, %v", none, err)
	}
	left, _ := filepath.Glob(filepath.Join(tr.Root, "etc/systemd/system/*/.#*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDisable(t *testing.T) {
	tr := tree(t, map[string]string{
		"lib/systemd/system/ssh.service":                               wanted + "Alias=sshd.service\n",
		"lib/systemd/system/get@.service":                              "[Install]\nWantedBy=get.target\n",
		"etc/systemd/system/sshd.service":                              "-> /lib/systemd/system/ssh.service",
		"etc/systemd/system/multi-user.target.wants/ssh.service":       "-> /lib/systemd/system/ssh.service",
		"etc/systemd/system/other.target.wants/sshd.service":           "-> ../sshd.service",
		"etc/systemd/system/get.target.wants/get@a.service":            "-> /lib/systemd/system/get@.service",
		"etc/systemd/system/get.target.wants/get@b.service":            "-> /lib/systemd/system/get@.service",
		"etc/systemd/system/multi-user.target.wants/vanished.service":  "-> /lib/systemd/system/vanished.service",
		"lib/systemd/system/multi-user.target.wants/unrelated.service": "-> ../unrelated.service",
	})
	names := func(units ...string) []string {
		changes, err := tr.Disable(units, How{})
		if err != nil {
			t.Errorf("%v: %v", units, err)
		}
		var out []string
		for _, c := range changes {
			out = append(out, filepath.Base(filepath.Dir(c.Link))+"/"+filepath.Base(c.Link))
		}
		slices.Sort(out)
		return out
	}
	if got, want := names("sshd.service"), []string{"multi-user.target.wants/ssh.service", "other.target.wants/sshd.service", "system/sshd.service"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := names("get@a.service"), []string{"get.target.wants/get@a.service"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := names("get@.service"), []string{"get.target.wants/get@b.service"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := names("vanished.service"), []string{"multi-user.target.wants/vanished.service"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := os.Stat(filepath.Join(tr.Root, "etc/systemd/system/get.target.wants")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory is left: %v", err)
	}
}

func TestState(t *testing.T) {
	tr := tree(t, map[string]string{
		"lib/systemd/system/on.service":                                wanted,
		"etc/systemd/system/multi-user.target.wants/on.service":        "-> /lib/systemd/system/on.service",
		"lib/systemd/system/off.service":                               wanted,
		"lib/systemd/system/runtime.service":                           wanted,
		"run/systemd/system/multi-user.target.wants/runtime.service":   "-> /lib/systemd/system/runtime.service",
		"lib/systemd/system/static.service":                            "[Service]\n",
		"lib/systemd/system/vendor.target":                             "[Unit]\n",
		"lib/systemd/system/graphical.target.wants/vendor.target":      "-> ../vendor.target",
		"lib/systemd/system/also.service":                              "[Install]\nAlso=on.service\n",
		"etc/systemd/system/masked.service":                            "-> /dev/null",
		"lib/systemd/system/masked.service":                            wanted,
		"run/systemd/system/masked2.service":                           "-> /dev/null",
		"lib/systemd/system/empty.service":                             "",
		"lib/systemd/system/other.service":                             "-> on.service",
		"etc/systemd/system/own.service":                               "-> /lib/systemd/system/on.service",
		"etc/systemd/system/opt.service":                               "-> /opt/opt.service",
		"opt/opt.service":                                              wanted,
		"lib/systemd/system/get@.service":                              wanted,
		"etc/systemd/system/multi-user.target.wants/get@tty1.service":  "-> /lib/systemd/system/get@.service",
		"lib/systemd/system/def@.service":                              wanted + "DefaultInstance=x\n",
		"etc/systemd/system/multi-user.target.wants/def@x.service":     "-> /lib/systemd/system/def@.service",
		"lib/systemd/system/bad.service":                               "[Install\n",
		"etc/systemd/system/dropped.service.d/install.conf":            "[Install]\nWantedBy=x.target\n",
		"lib/systemd/system/dropped.service":                           "[Service]\n",
		"etc/systemd/system/multi-user.target.wants/unrelated.service": "-> /dev/null",
	})
	for name, want := range map[string]State{
		"on.service": Enabled, "off.service": Disabled, "runtime.service": EnabledRuntime, "static.service": Static, "vendor.target": Static,
		"also.service": Indirect, "masked.service": Masked, "masked2.service": MaskedRuntime, "empty.service": Masked, "other.service": Alias,
		"own.service": Alias, "opt.service": Linked, "get@.service": Indirect, "get@tty1.service": Enabled, "get@tty2.service": Disabled,
		"def@.service": Enabled, "bad.service": Bad, "dropped.service": Disabled,
	} {
		if got, err := tr.State(name); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	if _, err := tr.State("nowhere.service"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a unit without a file: %v", err)
	}
}

func TestMaskAndPreset(t *testing.T) {
	tr := tree(t, map[string]string{
		"lib/systemd/system/a.service":              wanted,
		"lib/systemd/system/b.service":              wanted,
		"etc/systemd/system/c.service":              wanted,
		"usr/lib/systemd/system-preset/90-x.preset": "# comment\ndisable b*.service\nenable *\n",
		"lib/systemd/system/t@.service":             wanted,
		"etc/systemd/system-preset/10-t.preset":     "enable t@.service one two\n",
	})
	changes, missing, err := tr.Mask([]string{"a.service", "none.service"}, How{})
	if err != nil || len(changes) != 2 || !slices.Equal(missing, []string{"none.service"}) {
		t.Errorf("%v, %v, %v", changes, missing, err)
	}
	if _, _, err := tr.Enable([]string{"a.service"}, How{}); !errors.Is(err, ErrMasked) {
		t.Errorf("a masked unit was enabled: %v", err)
	}
	if _, _, err := tr.Mask([]string{"c.service"}, How{}); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("a file was masked over: %v", err)
	}
	if changes, err := tr.Unmask([]string{"a.service", "c.service"}, How{}); err != nil || len(changes) != 1 {
		t.Errorf("%v, %v", changes, err)
	}
	if changes, err := tr.Preset([]string{"a.service", "b.service", "t@.service"}, Full, How{}); err != nil || len(changes) != 3 {
		t.Errorf("%v, %v", changes, err)
	}
	if _, _, err := tr.Enable([]string{"b.service"}, How{}); err != nil {
		t.Error(err)
	}
	if changes, err := tr.Preset([]string{"b.service"}, EnableOnly, How{}); err != nil || len(changes) != 0 {
		t.Errorf("%v, %v", changes, err)
	}
	if changes, err := tr.Preset([]string{"b.service"}, Full, How{}); err != nil || len(changes) != 1 {
		t.Errorf("%v, %v", changes, err)
	}
}
