package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/mounts"
	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// A container with users of its own is in a user namespace. Its pod has 65536
// numbers of the host for itself, of those that nobody gives to anybody
// (https://systemd.io/UIDS-GIDS, "unused"). Which, a link says that leads to the
// pod's directory: it holds for as long as that is there.

const (
	rangeSize  = 1 << 16
	firstRange = 0x7000
	lastRange  = 0x7ffd
)

// public is where root file systems are mounted that the users of containers
// must get to, and where the links are.
var public = "/run/legion"

// rootOf is where a container's root file system is mounted.
func rootOf(c *service.Container) string {
	if c.Users {
		return filepath.Join(public, "containers", c.ID, Root)
	}
	return filepath.Join(c.Bundle, Root)
}

// Owner is the number that root of a container with users of its own has on the
// host.
func Owner(c *service.Container) (int, error) {
	dir, pod := filepath.Join(public, "users"), filepath.Dir(filepath.Dir(c.Bundle))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, err
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.Flock(fd, unix.LOCK_EX)
	}
	if err != nil {
		return 0, err
	}
	free := 0
	for n := firstRange; n <= lastRange; n++ {
		link := filepath.Join(dir, strconv.Itoa(n))
		of, err := os.Readlink(link)
		if of == pod {
			return n * rangeSize, nil
		}
		if err == nil {
			if _, err = os.Stat(of); errors.Is(err, fs.ErrNotExist) {
				_ = os.Remove(link) // its pod is gone
			}
		}
		if errors.Is(err, fs.ErrNotExist) && free == 0 {
			free = n
		}
	}
	if free == 0 {
		return 0, errors.New("all users that pods may have for themselves are taken")
	}
	return free * rangeSize, os.Symlink(pod, filepath.Join(dir, strconv.Itoa(free)))
}

// owners are the users of a container, nil where they are the host's.
type owners struct {
	first int
	ns    *os.File
}

func ownersOf(c *service.Container) (*owners, error) {
	if !c.Users {
		return nil, nil
	}
	first, err := Owner(c)
	if err != nil {
		return nil, fmt.Errorf("find users for the pod alone: %w", err)
	}
	ns, err := sandbox.MappedUsers(first, rangeSize)
	if err != nil {
		return nil, err
	}
	return &owners{first, ns}, nil
}

func (o *owners) close() {
	if o != nil {
		_ = o.ns.Close()
	}
}

// ready makes the directories of the root file system: they are the container's
// root's, and nobody else gets to it.
func (o *owners) ready(c *service.Container) error {
	at := rootOf(c)
	err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Dir(at)), 0o711), os.MkdirAll(at, 0o755), os.Chmod(filepath.Dir(at), 0o710), os.Chown(filepath.Dir(at), 0, o.first))
	for _, name := range []string{"upper", "work"} {
		err = errors.Join(err, os.Chown(filepath.Join(c.Bundle, name), o.first, o.first))
	}
	return err
}

// layers shows an image's layers to the container's users. They are mounted
// until the root file system is.
func (o *owners) layers(c *service.Container, list []string) ([]string, error) {
	var out []string
	for i, dir := range list {
		at := filepath.Join(c.Bundle, layers, strconv.Itoa(i))
		if err := os.MkdirAll(at, 0o700); err != nil {
			return nil, err
		}
		if err := mounts.Idmapped(dir, at, o.ns); err != nil {
			return nil, fmt.Errorf("a layer of the image: %w", err)
		}
		out = append(out, at)
	}
	return out, nil
}

// namespace puts the container into a user namespace: its own, or that of the
// process whose PID namespace it is in.
func (o *owners) namespace(linux map[string]any, holder int) {
	if o == nil {
		return
	}
	own := map[string]any{"type": "user"}
	if holder != 0 {
		own["path"] = fmt.Sprintf("/proc/%d/ns/user", holder)
	}
	list, _ := linux["namespaces"].([]any)
	linux["namespaces"] = append(list, own)
	mapping := []any{map[string]any{"containerID": 0, "hostID": o.first, "size": rangeSize}}
	linux["uidMappings"], linux["gidMappings"] = mapping, mapping
}
