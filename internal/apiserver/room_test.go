package apiserver

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// smallDisk is a file system of its own, of so many bytes.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skip("cannot mount a disk: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill leaves no byte of a disk, and returns what gives it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		n, err := file.Write(make([]byte, size))
		switch {
		case err == nil:
		case !errors.Is(err, syscall.ENOSPC):
			t.Fatal(err)
		case n == 0:
			size /= 2
		}
	}
	return func() {
		if err := errors.Join(file.Close(), os.Remove(path)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskFull fills the server's disk: it refuses to write and says why, reads
// all the same, starts on the full disk, and writes again by itself.
func TestDiskFull(t *testing.T) {
	dir := smallDisk(t, "size=192m")
	full := make(chan error, 100)
	config := Config{Dir: dir, Listen: "127.0.0.1", Full: func(why error) { full <- why }}
	f := startWith(t, config)
	config.Port = must[*net.TCPAddr](t)(net.ResolveTCPAddr("tcp", strings.TrimPrefix(f.url, "https://"))).Port
	makeMap := func(name string) error {
		_, err := f.admin.CoreV1().ConfigMaps("default").Create(t.Context(),
			&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}
	if err := makeMap("before"); err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		for _, err := range []error{
			makeMap("while"),
			f.admin.CoreV1().ConfigMaps("default").Delete(t.Context(), "before", metav1.DeleteOptions{}),
		} {
			if apierrors.ReasonForError(err) != reasonNoRoom || !strings.Contains(err.Error(), "KiB left on its disk") {
				t.Fatalf("%s: a write is answered with %v", when, err)
			}
		}
		if _, err := f.admin.CoreV1().ConfigMaps("default").Get(t.Context(), "before", metav1.GetOptions{}); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		list, err := f.admin.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=before"})
		if err != nil || len(list.Items) != 1 {
			t.Fatalf("%s: %v, %d of the ConfigMap", when, err, len(list.Items))
		}
	}
	told := func(want bool) {
		t.Helper()
		select {
		case why := <-full:
			if (why != nil) != want {
				t.Fatalf("told %v", why)
			}
		case <-time.After(limit):
			t.Fatal("nothing is told")
		}
	}
	free := fill(t, dir)
	refused("full")
	told(true)
	f.stop()
	f = startWith(t, config)
	refused("started on a full disk")
	told(true)
	free()
	told(false)
	if err := makeMap("after"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.admin.CoreV1().ConfigMaps("default").Get(t.Context(), "while", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("what was refused: %v", err)
	}
}

// TestRoomAhead: what the store has reserved is written though the disk is full,
// and the blocks change nothing of what is in the files.
func TestRoomAhead(t *testing.T) {
	dir := smallDisk(t, "size=64m")
	path := filepath.Join(dir, "db")
	if err := os.WriteFile(path, []byte("what is there"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := reserve(path, 16<<20, unix.FALLOC_FL_KEEP_SIZE); err != nil {
		t.Fatal(err)
	}
	defer fill(t, dir)()
	if data, err := os.ReadFile(path); string(data) != "what is there" {
		t.Fatalf("%q, %v", data, err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if _, err := file.WriteAt(make([]byte, 1<<20), 15<<20); err != nil {
		t.Error("within what is reserved: ", err)
	}
	if err := reserve(path, 32<<20, unix.FALLOC_FL_KEEP_SIZE); !errors.Is(err, unix.ENOSPC) {
		t.Error("more than there is: ", err)
	}
}
