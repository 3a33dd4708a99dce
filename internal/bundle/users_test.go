package bundle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/mounts"
	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// TestUsers: root of the container's users owns what root owns in the image and
// in volumes; what it makes there is root's on the disk. Another pod has others,
// and nothing stays of a pod that is gone.
func TestUsers(t *testing.T) {
	dir := t.TempDir()
	needRoot(t, dir)
	if !sandbox.ThisMachine().Users() {
		t.Skip("no user namespace can be made here")
	}
	probe := filepath.Join(dir, "probe")
	if ns, err := sandbox.MappedUsers(1<<30, 1<<16); err != nil {
		t.Fatal(err)
	} else if err := mounts.Idmapped(probe, probe, ns); err != nil {
		t.Skip("nothing can be shown to other users here: ", err)
	}
	if err := unix.Unmount(probe, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	public = filepath.Join(dir, "public")
	t.Cleanup(func() { public = "/run/legion" })
	in := func(name string) string { return filepath.Join(dir, name) }
	put(t, in("low/a"), "low")
	put(t, in("volume/sub/file"), "mine")
	put(t, in("one"), "a file")
	of := func(pod string) *service.Container {
		return &service.Container{
			ID: pod + "-c", Bundle: in(pod + "/containers/c"), State: in("state"), Layers: []string{in("low")}, Users: true,
			Spec: json.RawMessage(`{"root":{},"linux":{"namespaces":[{"type":"mount"}]},"process":{}}`),
		}
	}
	c := of("pod-x")
	list := []service.Mount{{Source: in("volume"), Target: "/v", SubPath: "sub"}, {Source: in("volume"), Target: "/w"}, {Source: in("one"), Target: "/one"}}
	var first int
	for run := range 2 { // the second over what the first has left
		if err := Prepare(c, list, "", 0); err != nil {
			t.Fatal(err)
		}
		own, err := Owner(c)
		if err != nil || run > 0 && own != first {
			t.Fatalf("root is %d, then %d, %v", first, own, err)
		}
		first = own
	}
	var spec struct {
		Root  struct{ Path string }
		Linux struct {
			Namespaces  []map[string]string
			UIDMappings []struct{ ContainerID, HostID, Size int }
		}
		Mounts []struct{ Destination, Source string }
	}
	text, err := os.ReadFile(in("pod-x/containers/c/config.json"))
	if err == nil {
		err = json.Unmarshal(text, &spec)
	}
	if err != nil {
		t.Fatal(err)
	}
	if m := spec.Linux.UIDMappings; len(m) != 1 || m[0].HostID != first || m[0].Size != 65536 || spec.Linux.Namespaces[1]["type"] != "user" || spec.Root.Path != rootOf(c) {
		t.Errorf("the configuration: %s", text)
	}
	owner := func(path string) int {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return int(st.Uid)
	}
	paths := []string{rootOf(c), filepath.Join(rootOf(c), "a")}
	for _, m := range spec.Mounts {
		paths = append(paths, m.Source)
	}
	for _, path := range paths {
		if got := owner(path); got != first {
			t.Errorf("%s is of %d, want %d", path, got, first)
		}
	}
	var sub string
	for _, m := range spec.Mounts {
		if m.Destination == "/v" {
			sub = m.Source
		}
	}
	put(t, filepath.Join(sub, "file"), "theirs")
	if got := owner(in("volume/sub/file")); got != 0 {
		t.Errorf("on the disk the volume's file is of %d", got)
	}

	other := of("pod-y")
	if err := Prepare(other, nil, "", 0); err != nil {
		t.Fatal(err)
	}
	second, err := Owner(other)
	if err != nil || second == first {
		t.Errorf("two pods have the users from %d and %d on, %v", first, second, err)
	}
	for _, c := range []*service.Container{c, other} {
		if err := Release(c, nil); err != nil {
			t.Error(err)
		}
	}
	for _, m := range mountsUnder(t, dir) {
		t.Errorf("%s is still mounted", strings.TrimPrefix(m, dir))
	}
	if left, _ := os.ReadDir(in("public/containers")); len(left) > 0 {
		t.Errorf("of root file systems is left %v", left)
	}
	if err := os.RemoveAll(in("pod-x")); err != nil {
		t.Fatal(err)
	}
	if again, err := Owner(of("pod-z")); err != nil || again != first {
		t.Errorf("after its end, the next pod has %d, %v; want %d", again, err, first)
	}
}
