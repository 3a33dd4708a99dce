package runner

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/service"
)

// withoutGetfd is what this program does where pidfd_getfd(2) is refused: it forks
// on any thread, plainly and through the sandbox step, and passes files on.
func withoutGetfd() int {
	r, err := New(Options{NoSubreaper: true})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer r.Close()
	if r.asks != nil {
		fmt.Println("forks on threads of their own all the same")
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	files, err := unix.MemfdCreate("passed", unix.MFD_CLOEXEC)
	if err == nil {
		_, err = unix.Write(files, []byte("passed on"))
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	plain := shell("echo plain; ls /proc/self/fd | wc -l")
	passing := shell("cat /proc/self/fd/3; exit 7")
	passing.Files = []File{{Name: "file", FD: files}}
	for _, q := range []Request{plain, passing} {
		exit, out, err := r.Output(ctx, q, 4096)
		fmt.Printf("%s%d %v\n", out, exit.Code, err)
	}
	return 0
}

// TestForkOnAnyThread: where no thread can have descriptors of its own, processes
// are started all the same, and get no more descriptors than they should.
func TestForkOnAnyThread(t *testing.T) {
	root(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	q := Request{
		Group: "t.service", Service: "t.service", Command: service.Command{Path: exe}, Env: []string{"LEGION_TEST_WITHOUT_GETFD=1"},
		Context: &service.ExecContext{Sandbox: &service.Sandbox{SystemCallFilter: []string{"~pidfd_getfd"}, SystemCallErrorNumber: "EPERM"}},
	}
	// ls has the directory open beside its three.
	if got, want := output(t, q), "plain\n4\n0 <nil>\npassed on7 <nil>"; got != want {
		t.Errorf("without pidfd_getfd it says %q, want %q", got, want)
	}
}
