package runner

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"legion.dev/legion/internal/bundle"
	"legion.dev/legion/internal/sandbox"
	"legion.dev/legion/internal/service"
)

// sandbox adds to the launch what the machine can give of the sandbox.
func (q *Request) sandbox(c *service.ExecContext, l *launch) *StartError {
	l.spec.Scheduling = c.Scheduling
	if c.Sandbox == nil {
		return nil
	}
	x, _ := sandbox.ThisMachine().Give(c.Sandbox)
	if usersLost(c) != "" {
		x.PrivateUsers = ""
	}
	l.spec.Sandbox = x
	for _, k := range directoryKinds(c, q.Dirs) {
		for _, d := range k.entries {
			l.spec.Writable = append(l.spec.Writable, filepath.Join(k.base, d.Path))
		}
	}
	if x.PrivateTmp {
		l.spec.Tmp = q.privateTmp()
		for _, dir := range l.spec.Tmp {
			if err := makePrivateTmp(dir); err != nil {
				return &StartError{Stage: fmt.Sprintf("make %q for PrivateTmp", dir), Err: err, Code: sandbox.CodeNamespace}
			}
		}
	}
	// Without the right to it, a filter needs no_new_privs (seccomp(2)).
	if l.spec.Filtered() && (os.Geteuid() != 0 || l.spec.Credential != nil && l.spec.Credential.UID != 0) {
		l.spec.NoNewPrivileges = true
	}
	return nil
}

// privateTmp are the request's own directories, or those of the unit that it
// shares them with.
func (q *Request) privateTmp() [2]string {
	if q.Tmp != "" {
		return privateTmp(q.Tmp, q.Tmp)
	}
	return privateTmp(q.Group, q.Service)
}

// privateTmp are the directories that a service sees as /tmp and /var/tmp. All
// processes of the service share them, as long as it runs.
func privateTmp(group, name string) [2]string {
	// Another legiond may have a service of that name.
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s", tmpSalt, group, name))
	base := "legion-private-" + hex.EncodeToString(sum[:6]) + "-" + group
	if name != "" && name != group {
		base += "-" + name
	}
	return [2]string{filepath.Join("/tmp", base, "tmp"), filepath.Join("/var/tmp", base, "tmp")}
}

// tmpSalt tells the service managers of a machine apart: each has a directory
// of its own to work in.
var tmpSalt string

// SetInstance names this service manager among those of the machine; the same
// name after a restart finds what is there.
func SetInstance(name string) { tmpSalt = name }

// makePrivateTmp makes the directory in one that nobody else can look into.
// What another user has put in its place is not used.
func makePrivateTmp(dir string) error {
	outer := filepath.Dir(dir)
	if err := os.Mkdir(outer, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	st, err := os.Lstat(outer)
	if err != nil {
		return err
	}
	if !st.IsDir() || st.Mode().Perm() != 0o700 || !own(st) {
		return fmt.Errorf("%s belongs to somebody else; remove it", outer)
	}
	if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o777|os.ModeSticky)
}

// RemovePrivateTmp removes what PrivateTmp= of a service has left.
func RemovePrivateTmp(group, name string) error {
	var errs []error
	for _, dir := range privateTmp(group, name) {
		errs = append(errs, os.RemoveAll(filepath.Dir(dir)))
	}
	return errors.Join(errs...)
}

// LostProtections names what of a context's sandbox this machine cannot give.
func LostProtections(c *service.ExecContext) []string {
	lost := Lost(c)
	if a := c.OOMScoreAdjust; a != nil && *a < sandbox.LeastOOM() {
		lost = append(lost, fmt.Sprintf("OOMScoreAdjust=%d: there is no right to it here (CAP_SYS_RESOURCE)", *a))
	}
	if c.Container != nil {
		lost = append(lost, bundle.Lost(c.Container)...)
	}
	if c.Sandbox != nil {
		_, more := sandbox.ThisMachine().Give(c.Sandbox)
		lost = append(lost, more...)
		if why := usersLost(c); why != "" {
			lost = append(lost, why)
		}
	}
	return lost
}

// usersLost says which other directive a user namespace would take away;
// PrivateUsers= is left out then.
func usersLost(c *service.ExecContext) string {
	if c.Sandbox.PrivateUsers == "" {
		return ""
	}
	const lost = "PrivateUsers=: with it, there would be no right to "
	s := c.Scheduling
	switch {
	case c.NetworkNamespacePath != "":
		return lost + "enter NetworkNamespacePath="
	case s != nil && (s.Policy == "fifo" || s.Policy == "rr"):
		return lost + "CPUSchedulingPolicy=" + s.Policy
	case s != nil && s.IOClass == "realtime":
		return lost + "IOSchedulingClass=realtime"
	}
	return ""
}
