package footprint

import (
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if how := os.Getenv("LEGION_TEST_THREADS"); how != "" {
		waitInKernel(how == "reserved")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// waitInKernel waits in the kernel many times at once, where it gives no more
// threads.
func waitInKernel(reserved bool) {
	if reserved {
		ReserveThreads()
	}
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	check(unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{}))
	var started, over sync.WaitGroup
	var ends []int
	for range threads / 2 {
		var p [2]int
		check(unix.Pipe2(p[:], unix.O_CLOEXEC))
		ends = append(ends, p[1])
		started.Add(1)
		over.Go(func() {
			started.Done()
			_, err := unix.Read(p[0], make([]byte, 1))
			check(err)
		})
	}
	started.Wait() // the last had a thread while the others waited
	for _, fd := range ends {
		_, err := unix.Write(fd, []byte{1})
		check(err)
	}
	over.Wait()
}

// TestReserveThreads: who has them goes on where others are ended.
func TestReserveThreads(t *testing.T) {
	for _, how := range []string{"reserved", "not"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "LEGION_TEST_THREADS="+how)
		if os.Geteuid() == 0 { // whom no limit holds
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			cmd.Dir = "/"
		}
		out, err := cmd.CombinedOutput()
		if lives := err == nil; lives != (how == "reserved") || !lives && !strings.Contains(string(out), "thread") {
			t.Errorf("threads %s: %v\n%.500s", how, err, out)
		}
	}
}
