package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	imageutils "k8s.io/kubernetes/test/utils/image"

	"legion.dev/legion/test/upstream/agnhost"
)

// fleet is one of real agents, as `legion up` starts it on this machine.
type fleet struct{ bin, dir string }

// isolated says that this process is in a network of its own.
const isolated = "UPSTREAM_E2E_ISOLATED"

// isolate runs this program again, in a network namespace with nothing but
// loopback: the cases name images that no registry has, and no registry is to be
// asked for them. It returns when that one has ended; false is that this is it.
func isolate(ctx context.Context) (bool, error) {
	if os.Getenv(isolated) != "" {
		return false, loopbackUp()
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		return true, &toldError{err}
	}
	return true, nil
}

// toldError is the end of a run that has said itself what is wrong.
type toldError struct{ error }

func loopbackUp() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(socket) }()
	link, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	link.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, link)
}

// startFleet brings the fleet up and gives each node the image that the cases
// run, under the names by which they call it.
func startFleet(ctx context.Context, bin, dir string, nodes int) (*fleet, error) {
	f := &fleet{bin, filepath.Join(dir, "fleet")}
	archive := filepath.Join(dir, "agnhost.tar")
	if err := agnhost.Write(archive); err != nil {
		return nil, err
	}
	if err := f.legion(ctx, "up", "--dir", f.dir, "--nodes", fmt.Sprint(nodes), "--port", "0"); err != nil {
		return nil, errors.Join(err, f.stop())
	}
	for i := range nodes {
		store := filepath.Join(f.dir, "nodes", fmt.Sprint("n", i+1), "images")
		for _, name := range []imageutils.ImageID{imageutils.Agnhost, imageutils.AgnhostPrev} {
			if err := f.legion(ctx, "image", "import", "--dir", store, "--name", imageutils.GetE2EImage(name), archive); err != nil {
				return nil, errors.Join(err, f.stop())
			}
		}
	}
	return f, nil
}

func (f *fleet) legion(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(f.bin, "legion"), args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("legion %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// stop takes the fleet down; its files stay.
func (f *fleet) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return f.legion(ctx, "down", "--dir", f.dir)
}

// kubectl writes a script that is the built-in kubectl, for the binary.
func (f *fleet) kubectl() (string, error) {
	path := filepath.Join(f.dir, "kubectl")
	program, err := filepath.Abs(filepath.Join(f.bin, "legion"))
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, fmt.Appendf(nil, "#!/bin/sh\nexec %q kubectl \"$@\"\n", program), 0o755)
}

// tellExecs says how often a case ran a command in a pod: the one on surge does
// so at random, to make an old pod unready.
func tellExecs(log string) error {
	text, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	fmt.Printf("\ncommands run in pods by kubectl exec: %d, and %d failed\n",
		bytes.Count(text, []byte("Marked old pod")), bytes.Count(text, []byte("Failed to mark pod")))
	return nil
}
