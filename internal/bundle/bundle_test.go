package bundle

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

func needRoot(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	at := filepath.Join(dir, "probe")
	if err := os.MkdirAll(filepath.Join(at, "w"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := unix.Mount("tmpfs", at, "tmpfs", 0, "")
	if err != nil {
		t.Skip("cannot mount here: ", err)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mountsUnder(t *testing.T, dir string) []string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], dir) {
			out = append(out, f[4])
		}
	}
	return out
}

// TestPrepare: each run sees the image as it is, a subPath is what it was when
// the run began, and nothing is left when the container is released.
func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	needRoot(t, dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	put(t, in("low/a"), "low")
	put(t, in("low/b"), "low")
	put(t, in("high/b"), "high")
	put(t, in("volume/sub/file"), "mine")
	c := &service.Container{
		ID: "pod-x-c", Program: "/usr/sbin/runc", Bundle: in("bundle"), State: in("state"), Layers: []string{in("low"), in("high")},
		Spec: json.RawMessage(`{"ociVersion":"1.0.2","root":{"readonly":true},"mounts":[{"destination":"/proc","type":"proc"}],"linux":{"maskedPaths":["/x"]},"process":{"cwd":"/"}}`),
	}
	list := []service.Mount{
		{Source: in("volume"), Target: "/data/sub", SubPath: "sub", ReadOnly: true},
		{Source: in("memory"), Target: "/data", Is: "DirectoryOrCreate", Tmpfs: true, Propagation: "slave"},
	}
	for run := range 2 {
		if err := Prepare(c, list, "", 0); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"a": "low", "b": "high"} {
			if text, err := os.ReadFile(in("bundle/rootfs/" + name)); err != nil || string(text) != want {
				t.Errorf("run %d: %s: %q, %v", run, name, text, err)
			}
		}
		if _, err := os.Stat(in("bundle/rootfs/written")); err == nil {
			t.Errorf("run %d sees what the run before has written", run)
		}
		put(t, in("bundle/rootfs/written"), "x")
		put(t, in("state/pod-x-c/state.json"), "{}")
	}
	var spec struct {
		Root   map[string]any
		Linux  map[string]any
		Mounts []struct {
			Destination, Source string
			Options             []string
		}
	}
	text, err := os.ReadFile(in("bundle/config.json"))
	if err == nil {
		err = json.Unmarshal(text, &spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	if spec.Root["path"] != "rootfs" || spec.Root["readonly"] != true || spec.Linux["cgroupsPath"] != "pod-x-c" || spec.Linux["maskedPaths"] == nil {
		t.Errorf("the configuration: %s", text)
	}
	if len(spec.Mounts) != 3 || spec.Mounts[1].Destination != "/data" || spec.Mounts[2].Destination != "/data/sub" ||
		!slices.Contains(spec.Mounts[1].Options, "rslave") || !slices.Contains(spec.Mounts[2].Options, "ro") {
		t.Errorf("the mounts: %+v", spec.Mounts)
	}
	// The volume's owner may put a link in its place; the container has what was there.
	if err := os.Rename(in("volume/sub"), in("volume/was")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", in("volume/sub")); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(spec.Mounts[2].Source, "file")); err != nil || string(text) != "mine" {
		t.Errorf("the subPath: %q, %v", text, err)
	}
	if err := Prepare(c, list, "", 0); err == nil || !strings.Contains(err.Error(), "sub") {
		t.Errorf("a subPath that leads out of its volume: %v", err)
	}
	for range 2 { // the second time there is nothing to do
		if err := Release(c, list); err != nil {
			t.Error(err)
		}
	}
	if left := mountsUnder(t, dir); len(left) != 0 {
		t.Errorf("mounts are left: %v", left)
	}
	if _, err := os.Stat(in("state/pod-x-c")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the runtime knew of the container is left: %v", err)
	}
	if text, err := os.ReadFile(in("volume/was/file")); err != nil || string(text) != "mine" {
		t.Errorf("the volume: %q, %v", text, err)
	}
}

// TestManyLayers: more layers than mount(2) takes at once.
func TestManyLayers(t *testing.T) {
	dir := t.TempDir()
	needRoot(t, dir)
	c := &service.Container{ID: "c", Bundle: filepath.Join(dir, "bundle"), State: dir, Spec: json.RawMessage("{}")}
	for n := range 60 {
		layer := filepath.Join(dir, strings.Repeat("long", 20), string(rune('A'+n)))
		put(t, filepath.Join(layer, "file"), string(rune('A'+n)))
		c.Layers = append(c.Layers, layer)
	}
	err := Prepare(c, nil, "", 0)
	defer func() { _ = Release(c, nil) }()
	if err != nil && strings.Contains(err.Error(), "need Linux 6.7") {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(c.Bundle, Root, "file")); err != nil || string(text) != string(rune('A'+59)) {
		t.Errorf("the uppermost layer: %q, %v", text, err)
	}
	if err := Release(c, nil); err != nil {
		t.Error(err)
	}
}

// TestCapabilities: what legiond lacks itself is left out, and named.
func TestCapabilities(t *testing.T) {
	has := func(name string) bool { return name != "CAP_SYS_RESOURCE" }
	const text = `{"process":{"args":["x"],"capabilities":{"bounding":["CAP_CHOWN","CAP_SYS_RESOURCE"],"effective":["CAP_SYS_RESOURCE"]}}}`
	var spec map[string]map[string]any
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		t.Fatal(err)
	}
	bound(spec["process"], has)
	got, err := json.Marshal(spec)
	if want := `{"process":{"args":["x"],"capabilities":{"bounding":["CAP_CHOWN"],"effective":[]}}}`; err != nil || string(got) != want {
		t.Errorf("bound: %s, %v, want %s", got, err, want)
	}
	if l := lost(&service.Container{Spec: json.RawMessage(text)}, has); !slices.Equal(l, []string{"capabilities: legiond itself has no CAP_SYS_RESOURCE"}) {
		t.Errorf("lost: %q", l)
	}
	if l := lost(&service.Container{Spec: json.RawMessage(text)}, func(string) bool { return true }); l != nil {
		t.Errorf("lost: %q", l)
	}
}

// TestPIDs: a container joins the PID namespace of the process that holds it,
// which has nothing but the program that waits.
func TestPIDs(t *testing.T) {
	type spec struct {
		Linux  struct{ Namespaces []map[string]string }
		Mounts []struct{ Destination, Source string }
	}
	configured := func(c *service.Container, holder int) (out spec) {
		t.Helper()
		text, err := configure(c, nil, "", holder, nil)
		if err == nil {
			err = json.Unmarshal(text, &out)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	text := json.RawMessage(`{"linux":{"namespaces":[{"type":"mount"}]}}`)
	got := configured(&service.Container{PIDs: "holder", Spec: text}, 42).Linux.Namespaces
	if len(got) != 2 || got[0]["type"] != "mount" || got[1]["type"] != "pid" || got[1]["path"] != "/proc/42/ns/pid" {
		t.Errorf("who joins: %v", got)
	}
	own := configured(&service.Container{Spec: text}, 0)
	if len(own.Linux.Namespaces) != 1 || len(own.Mounts) != 0 {
		t.Errorf("who has its own: %+v", own)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if m := configured(&service.Container{Pauses: true, Spec: text}, 0).Mounts; len(m) != 1 || m[0].Destination != service.Pause || m[0].Source != program {
		t.Errorf("who holds: %+v, want %s", m, program)
	}
	if err := Prepare(&service.Container{PIDs: "holder", Spec: text, Bundle: t.TempDir()}, nil, "", 0); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("nobody holds: %v", err)
	}
}
