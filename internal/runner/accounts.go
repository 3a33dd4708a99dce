package runner

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// accounts reads users and groups from the machine's files. Accounts that only
// a network directory knows (LDAP through NSS) are given by number.
type accounts struct {
	passwd, group string // empty is /etc/passwd and /etc/group
	dynamicDir    string // empty is below /run
}

type account struct {
	name, home, shell string
	uid, gid          uint32
}

var (
	errNoUser  = errors.New("no such user")
	errNoGroup = errors.New("no such group")
)

// each calls f with the fields of every line of a passwd(5)-like file until it
// returns false.
func each(path, standard string, fields int, f func([]string) bool) error {
	if path == "" {
		path = standard
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if parts := strings.Split(lines.Text(), ":"); len(parts) >= fields && !f(parts) {
			break
		}
	}
	return lines.Err()
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	// All ones means "leave as is" to the kernel.
	return uint32(n), err == nil && uint32(n) != ^uint32(0)
}

// user finds an account by name or number; a number needs no entry.
func (a accounts) user(name string) (account, error) {
	uid, numeric := number(name)
	var found *account
	err := each(a.passwd, "/etc/passwd", 7, func(p []string) bool {
		u, ok1 := number(p[2])
		g, ok2 := number(p[3])
		if ok1 && ok2 && (p[0] == name || numeric && u == uid) {
			found = &account{name: p[0], uid: u, gid: g, home: p[5], shell: p[6]}
		}
		return found == nil
	})
	switch {
	case found != nil:
		return *found, nil
	case numeric:
		return account{name: name, uid: uid, gid: uid, home: "/"}, nil
	case err != nil:
		return account{}, err
	default:
		return account{}, errNoUser
	}
}

func (a accounts) groupID(name string) (uint32, error) {
	gid, numeric := number(name)
	found := false
	err := each(a.group, "/etc/group", 4, func(p []string) bool {
		if p[0] == name {
			gid, found = number(p[2])
		}
		return !found
	})
	switch {
	case found || numeric:
		return gid, nil
	case err != nil:
		return 0, err
	default:
		return 0, errNoGroup
	}
}

// memberships are the groups that list the user.
func (a accounts) memberships(user string) ([]uint32, error) {
	var out []uint32
	err := each(a.group, "/etc/group", 4, func(p []string) bool {
		if gid, ok := number(p[2]); ok && slices.Contains(strings.Split(p[3], ","), user) {
			out = append(out, gid)
		}
		return true
	})
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return out, err
}

// identity is whom a process runs as.
type identity struct {
	account
	// set: User= was given, so USER, HOME and SHELL are.
	set bool
	// credential is nil where nothing is to be changed.
	credential *sandbox.Credential
}

// identify resolves User=, Group= and SupplementaryGroups=.
func (a accounts) identify(c *service.ExecContext) (identity, *StartError) {
	var id identity
	fail := func(what, name string, code int, err error) (identity, *StartError) {
		return identity{}, &StartError{Stage: fmt.Sprintf("set %s %q", what, name), Code: code, Err: err}
	}
	id.uid, id.gid = uint32(os.Geteuid()), uint32(os.Getegid())
	if c.User == "" && c.Group == "" && len(c.SupplementaryGroups) == 0 {
		return id, nil
	}
	var err error
	if c.User != "" {
		find := a.user
		if c.DynamicUser {
			find = a.dynamic
		}
		if id.account, err = find(c.User); err != nil {
			return fail("user", c.User, sandbox.CodeUser, err)
		}
		id.set = true
	}
	if c.Group != "" {
		if id.gid, err = a.groupID(c.Group); err != nil {
			return fail("group", c.Group, sandbox.CodeGroup, err)
		}
	}
	groups := []uint32{id.gid}
	if c.User != "" {
		more, err := a.memberships(id.name)
		if err != nil {
			return fail("groups of user", c.User, sandbox.CodeGroup, err)
		}
		groups = append(groups, more...)
	}
	for _, name := range c.SupplementaryGroups {
		gid, err := a.groupID(name)
		if err != nil {
			return fail("supplementary group", name, sandbox.CodeGroup, err)
		}
		groups = append(groups, gid)
	}
	slices.Sort(groups)
	if os.Geteuid() != 0 {
		if int(id.uid) == os.Geteuid() && int(id.gid) == os.Getegid() {
			return id, nil // nothing to change, and no right to
		}
		return fail("user", c.User, sandbox.CodeUser, fmt.Errorf("legiond runs as user %d and only root can change to another; run legiond as root or remove User= and Group=", os.Geteuid()))
	}
	id.credential = &sandbox.Credential{UID: id.uid, GID: id.gid, Groups: slices.Compact(groups)}
	return id, nil
}
