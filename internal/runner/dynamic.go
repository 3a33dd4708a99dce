package runner

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The users that DynamicUser= takes, as in systemd (systemd.exec(5)).
const (
	firstDynamic = 61184
	lastDynamic  = 65519
)

// dynamicDir remembers which of them is whose until the machine starts again,
// for all service managers of the machine.
const dynamicDir = "/run/legion/dynamic-users"

// dynamic finds the account of a service with DynamicUser=: one that exists
// under the name, else a number of its own.
func (a accounts) dynamic(name string) (account, error) {
	if found, err := a.user(name); err == nil {
		return found, nil
	}
	dir := a.dynamicDir
	if dir == "" {
		dir = dynamicDir
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return account{}, err
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	const n = lastDynamic - firstDynamic + 1
	for i := range uint32(n) {
		uid := firstDynamic + (h.Sum32()+i)%n
		if a.takenStatic(uid) {
			continue
		}
		file := filepath.Join(dir, strconv.Itoa(int(uid)))
		f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if errors.Is(err, os.ErrExist) {
			if owner, err := os.ReadFile(file); err == nil && string(owner) == name {
				return account{name: name, uid: uid, gid: uid, home: "/"}, nil
			}
			continue
		}
		if err != nil {
			return account{}, err
		}
		_, err = f.WriteString(name)
		if err := errors.Join(err, f.Close()); err != nil {
			return account{}, err
		}
		return account{name: name, uid: uid, gid: uid, home: "/"}, nil
	}
	return account{}, fmt.Errorf("all users from %d to %d are taken; remove the files in %s of services that are gone", firstDynamic, lastDynamic, dir)
}

// takenStatic says whether the number has an account or a group.
func (a accounts) takenStatic(id uint32) bool {
	taken := false
	look := func(fields []string) bool {
		n, ok := number(fields[2])
		taken = taken || ok && n == id
		return !taken
	}
	_ = each(a.passwd, "/etc/passwd", 7, look)
	_ = each(a.group, "/etc/group", 4, look)
	return taken
}

// dynamicName is the account's name where User= does not say it.
func dynamicName(group string) string {
	name, _, _ := strings.Cut(strings.TrimSuffix(group, ".service"), "@")
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, name)
}
