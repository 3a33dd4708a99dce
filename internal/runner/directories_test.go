package runner

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// TestDirectoryIsALink: what a user puts in the place of its directory leads
// legiond to nobody else's; what the administrator does is meant.
func TestDirectoryIsALink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can give directories away")
	}
	const user = 4711
	base := t.TempDir()
	at := func(name string) string { return filepath.Join(base, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	id := identity{credential: &sandbox.Credential{UID: user, GID: user}}
	id.uid, id.gid = user, user
	open := service.Directory{Mode: 0o1777}
	for _, dir := range []string{"own", "another", "disk", "disk/inner"} {
		must(os.Mkdir(at(dir), 0o700))
	}
	must(os.WriteFile(at("another/file"), nil, 0o600))
	must(os.Chown(at("own"), user, user))

	must(os.Symlink(at("another"), at("own/theirs")))
	must(os.Lchown(at("own/theirs"), user, user))
	if err := makeDirectory(at("own/theirs"), open, true, id); err == nil {
		t.Error("a user's link was followed")
	}
	if st, err := os.Stat(at("another")); err != nil || st.Mode().Perm() != 0o700 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("what it leads to has changed: %v %v", st, err)
	}

	must(os.Symlink("disk", at("moved")))
	must(os.Symlink(at("another/file"), at("disk/inner/link")))
	must(makeDirectory(at("moved"), open, true, id))
	for name, uid := range map[string]uint32{"disk": user, "disk/inner": user, "disk/inner/link": user, "another/file": 0, "moved": 0} {
		if st, err := os.Lstat(at(name)); err != nil || st.Sys().(*syscall.Stat_t).Uid != uid {
			t.Errorf("%s: %v %v", name, st.Sys(), err)
		}
	}
	if st, err := os.Stat(at("disk")); err != nil || st.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("its mode is %v, %v", st.Mode(), err)
	}
}
