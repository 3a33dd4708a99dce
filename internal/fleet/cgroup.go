package fleet

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// cgroupMount finds where cgroup v2 is mounted, with controllers or without.
func cgroupMount() (string, error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		// …  root  mount-point  options … - type source options (proc(5))
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if ok && strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return unescape(fields[4]), nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted")
}

// ownCgroup is the directory of the cgroup that this process is in.
func ownCgroup() (string, error) {
	mount, err := cgroupMount()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return filepath.Join(mount, path), nil
		}
	}
	return "", errors.New("this process is in no v2 cgroup")
}

// chooseCgroup names the fleet's cgroup, "" where none can be made.
func (f *Fleet) chooseCgroup() string {
	own, err := ownCgroup()
	if err != nil {
		return ""
	}
	dir := filepath.Join(own, "legion-"+f.id())
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return ""
	}
	return dir
}

// findCgroup finds the fleet's cgroup by its name, "" if there is none.
func (f *Fleet) findCgroup() string {
	mount, err := cgroupMount()
	if err != nil {
		return ""
	}
	found := ""
	_ = filepath.WalkDir(mount, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "legion-"+f.id() {
			found = path
			return fs.SkipAll
		}
		return nil
	})
	return found
}

// killCgroup ends every process below a cgroup at once.
func killCgroup(dir string) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no such cgroup, or a kernel without cgroup.kill
	}
	return err
}

// removeCgroup removes a cgroup and those below it, the deepest first.
func removeCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		if e := os.Remove(dirs[i]); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove cgroup: %w", e))
		}
	}
	return err
}

// mountsBelow lists what is mounted below a directory, the newest first.
func mountsBelow(dir string) []string {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	defer file.Close()
	var found []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 && strings.HasPrefix(unescape(fields[4]), dir+"/") {
			found = append([]string{unescape(fields[4])}, found...)
		}
	}
	return found
}

// unescape turns proc(5)'s octal escapes back.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace
