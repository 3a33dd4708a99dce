package unitfile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/service"
)

// box is a field of the service's sandbox.
func box[T any](f func(*service.Sandbox) *T) func(*compiler) *T {
	return func(c *compiler) *T {
		if c.svc.Exec.Sandbox == nil {
			c.svc.Exec.Sandbox = &service.Sandbox{}
		}
		return f(c.svc.Exec.Sandbox)
	}
}

func sched(c *compiler) *service.Scheduling {
	if c.svc.Exec.Scheduling == nil {
		c.svc.Exec.Scheduling = &service.Scheduling{}
	}
	return c.svc.Exec.Scheduling
}

// yes is boolean for settings of which later versions of systemd know further
// grades: each of those is at least yes.
func yes(field func(*compiler) *bool, grades ...string) setter {
	return func(c *compiler, e Entry) error {
		if slices.Contains(grades, e.Value) {
			*field(c) = true
			return nil
		}
		return boolean(field)(c, e)
	}
}

// grade takes one of some words or a boolean; no is the empty word, yes is
// "yes" where that is one of the words.
func grade(field func(*compiler) *string, words ...string) setter {
	return func(c *compiler, e Entry) error {
		if slices.Contains(words, e.Value) {
			*field(c) = e.Value
			return nil
		}
		v, err := ParseBool(e.Value)
		if err != nil || v && !slices.Contains(words, "yes") {
			return fmt.Errorf("%q is none of no, %s", e.Value, strings.Join(words, ", "))
		}
		*field(c) = map[bool]string{true: "yes"}[v]
		return nil
	}
}

// sandboxRows are the directives of systemd.exec(5) under "Sandboxing", "System
// Call Filtering" and "Scheduling".
var sandboxRows = []row{
	{names: "PrivateTmp", set: yes(box(func(s *service.Sandbox) *bool { return &s.PrivateTmp }), "disconnected", "connected")},
	{names: "PrivateDevices", set: boolean(box(func(s *service.Sandbox) *bool { return &s.PrivateDevices }))},
	{names: "PrivateMounts", set: boolean(box(func(s *service.Sandbox) *bool { return &s.PrivateMounts }))},
	{names: "PrivateNetwork", set: boolean(box(func(s *service.Sandbox) *bool { return &s.PrivateNetwork }))},
	{names: "PrivateIPC", set: boolean(box(func(s *service.Sandbox) *bool { return &s.PrivateIPC }))},
	{names: "PrivateUsers", set: privateUsers},
	{names: "ProtectSystem", set: grade(box(func(s *service.Sandbox) *string { return &s.ProtectSystem }), "yes", "full", "strict")},
	{names: "ProtectHome", set: grade(box(func(s *service.Sandbox) *string { return &s.ProtectHome }), "yes", "read-only", "tmpfs")},
	{names: "ProtectControlGroups", set: yes(box(func(s *service.Sandbox) *bool { return &s.ProtectControlGroups }), "private", "strict")},
	{names: "ProtectKernelModules", set: boolean(box(func(s *service.Sandbox) *bool { return &s.ProtectKernelModules }))},
	{names: "ProtectKernelTunables", set: boolean(box(func(s *service.Sandbox) *bool { return &s.ProtectKernelTunables }))},
	{names: "ProtectKernelLogs", set: boolean(box(func(s *service.Sandbox) *bool { return &s.ProtectKernelLogs }))},
	{names: "ProtectHostname", set: yes(box(func(s *service.Sandbox) *bool { return &s.ProtectHostname }), "private")},
	{names: "ProtectClock", set: boolean(box(func(s *service.Sandbox) *bool { return &s.ProtectClock }))},
	{names: "ProtectProc", set: standard(box(func(s *service.Sandbox) *string { return &s.ProtectProc }), "default", "noaccess", "invisible", "ptraceable")},
	{names: "ProcSubset", set: standard(box(func(s *service.Sandbox) *string { return &s.ProcSubset }), "all", "pid")},
	{names: "ReadWritePaths ReadWriteDirectories", set: paths(box(func(s *service.Sandbox) *[]string { return &s.ReadWritePaths }))},
	{names: "ReadOnlyPaths ReadOnlyDirectories", set: paths(box(func(s *service.Sandbox) *[]string { return &s.ReadOnlyPaths }))},
	{names: "InaccessiblePaths InaccessibleDirectories", set: paths(box(func(s *service.Sandbox) *[]string { return &s.InaccessiblePaths }))},
	{names: "ExecPaths", set: paths(box(func(s *service.Sandbox) *[]string { return &s.ExecPaths }))},
	{names: "NoExecPaths", set: paths(box(func(s *service.Sandbox) *[]string { return &s.NoExecPaths }))},
	{names: "TemporaryFileSystem", set: list(box(func(s *service.Sandbox) *[]string { return &s.TemporaryFileSystem }))},
	{names: "BindPaths BindReadOnlyPaths", set: binds},
	{names: "MountAPIVFS", set: boolean(box(func(s *service.Sandbox) *bool { return &s.MountAPIVFS }))},
	{names: "MountFlags", set: oneOf(box(func(s *service.Sandbox) *string { return &s.MountFlags }), "shared", "slave", "private")},
	{names: "RestrictNamespaces", set: restrictNamespaces},
	{names: "RestrictRealtime", set: boolean(box(func(s *service.Sandbox) *bool { return &s.RestrictRealtime }))},
	{names: "RestrictSUIDSGID", set: boolean(box(func(s *service.Sandbox) *bool { return &s.RestrictSUIDSGID }))},
	{names: "LockPersonality", set: boolean(box(func(s *service.Sandbox) *bool { return &s.LockPersonality }))},
	{names: "MemoryDenyWriteExecute", set: boolean(box(func(s *service.Sandbox) *bool { return &s.MemoryDenyWriteExecute }))},
	{names: "RestrictAddressFamilies", set: restrictFamilies},
	{names: "SystemCallFilter", set: lines(box(func(s *service.Sandbox) *[]string { return &s.SystemCallFilter }))},
	{names: "SystemCallErrorNumber", set: text(box(func(s *service.Sandbox) *string { return &s.SystemCallErrorNumber }))},
	{names: "SystemCallArchitectures", set: list(box(func(s *service.Sandbox) *[]string { return &s.SystemCallArchitectures }))},
	{names: "SecureBits", set: names(box(func(s *service.Sandbox) *[]string { return &s.SecureBits }), func(w string) bool {
		return slices.Contains([]string{"keep-caps", "keep-caps-locked", "no-setuid-fixup", "no-setuid-fixup-locked", "noroot", "noroot-locked"}, w)
	})},
	{names: "KeyringMode", set: oneOf(box(func(s *service.Sandbox) *string { return &s.KeyringMode }), "inherit", "private", "shared")},
	{names: "Personality", set: oneOf(box(func(s *service.Sandbox) *string { return &s.Personality }), "x86", "x86-64", "arm", "arm64")},

	{names: "CPUSchedulingPolicy", set: oneOf(func(c *compiler) *string { return &sched(c).Policy }, "other", "batch", "idle", "fifo", "rr")},
	{names: "CPUSchedulingPriority", set: priority},
	{names: "CPUSchedulingResetOnFork", set: boolean(func(c *compiler) *bool { return &sched(c).ResetOnFork })},
	{names: "CPUAffinity", set: affinity},
	{names: "IOSchedulingClass", set: ioClass},
	{names: "IOSchedulingPriority", set: integer(func(c *compiler) **int { return &sched(c).IOPriority }, 0, 7)},
	{names: "TimerSlackNSec", set: timerSlack},
}

// privateUsers takes a boolean, of which yes is self, or one of the later words.
func privateUsers(c *compiler, e Entry) error {
	to := box(func(s *service.Sandbox) *string { return &s.PrivateUsers })(c)
	if v, err := ParseBool(e.Value); err == nil {
		*to = map[bool]string{true: "self"}[v]
		return nil
	}
	if e.Value != "" && !slices.Contains([]string{"self", "identity", "full"}, e.Value) {
		return fmt.Errorf("%q is none of yes, no, self, identity, full", e.Value)
	}
	*to = e.Value
	return nil
}

// standard takes one of some words, of which the first means nothing special.
func standard(field func(*compiler) *string, first string, words ...string) setter {
	return func(c *compiler, e Entry) error {
		switch {
		case e.Value == "" || e.Value == first:
			*field(c) = ""
		case slices.Contains(words, e.Value):
			*field(c) = e.Value
		default:
			return fmt.Errorf("%q is none of %s, %s", e.Value, first, strings.Join(words, ", "))
		}
		return nil
	}
}

// paths takes absolute paths, with the prefixes - and +; the empty value resets.
func paths(field func(*compiler) *[]string) setter {
	return func(c *compiler, e Entry) error {
		to := field(c)
		if e.Value == "" {
			*to = nil
			return nil
		}
		words, err := c.words(e.Value)
		if err != nil {
			return err
		}
		for _, w := range words {
			p := strings.TrimPrefix(strings.TrimPrefix(w, "-"), "+")
			clean, err := cleanPath(p)
			if err != nil {
				c.warn(e, "ignored: %v", err)
				continue
			}
			*to = append(*to, w[:len(w)-len(p)]+clean)
		}
		return nil
	}
}

// lines keeps the values as they are; the empty value resets.
func lines(field func(*compiler) *[]string) setter {
	return func(c *compiler, e Entry) error {
		to := field(c)
		if e.Value == "" {
			*to = nil
		} else {
			*to = append(*to, e.Value)
		}
		return nil
	}
}

// binds takes "source:target:options" words.
func binds(c *compiler, e Entry) error {
	to := box(func(s *service.Sandbox) *[]service.Bind { return &s.Binds })(c)
	readOnly := e.Key == "BindReadOnlyPaths"
	if e.Value == "" {
		*to = slices.DeleteFunc(*to, func(b service.Bind) bool { return b.ReadOnly == readOnly })
		return nil
	}
	words, err := c.words(e.Value)
	if err != nil {
		return err
	}
	for _, w := range words {
		w, optional := strings.CutPrefix(w, "-")
		parts := strings.SplitN(w, ":", 3)
		b := service.Bind{ReadOnly: readOnly, Optional: optional}
		if b.Source, err = cleanPath(parts[0]); err != nil {
			return err
		}
		b.Target = b.Source
		if len(parts) > 1 && parts[1] != "" {
			if b.Target, err = cleanPath(parts[1]); err != nil {
				return err
			}
		}
		b.Shallow = len(parts) > 2 && parts[2] == "norbind"
		*to = append(*to, b)
	}
	return nil
}

var namespaceKinds = []string{"cgroup", "ipc", "net", "mnt", "pid", "user", "uts"}

func restrictNamespaces(c *compiler, e Entry) error {
	to := box(func(s *service.Sandbox) **[]string { return &s.RestrictNamespaces })(c)
	if e.Value == "" {
		*to = nil
		return nil
	}
	if v, err := ParseBool(e.Value); err == nil {
		*to = nil
		if v {
			*to = &[]string{}
		}
		return nil
	}
	value, inverted := strings.CutPrefix(e.Value, "~")
	words := strings.Fields(value)
	for _, w := range words {
		if !slices.Contains(namespaceKinds, w) {
			return fmt.Errorf("%q is no kind of namespace: %s", w, strings.Join(namespaceKinds, ", "))
		}
	}
	var allowed []string
	if *to != nil {
		allowed = **to
	} else if inverted {
		allowed = namespaceKinds
	}
	out := []string{}
	for _, k := range namespaceKinds {
		if listed := slices.Contains(words, k); listed && !inverted || !listed && slices.Contains(allowed, k) {
			out = append(out, k)
		}
	}
	*to = &out
	return nil
}

func restrictFamilies(c *compiler, e Entry) error {
	s := box(func(s *service.Sandbox) *service.Sandbox { return s })(c)
	if e.Value == "" {
		s.RestrictAddressFamilies, s.FamiliesDenied = nil, false
		return nil
	}
	if e.Value == "none" {
		s.RestrictAddressFamilies, s.FamiliesDenied = &[]string{}, false
		return nil
	}
	value, denied := strings.CutPrefix(e.Value, "~")
	words := strings.Fields(value)
	for _, w := range words {
		if !strings.HasPrefix(w, "AF_") {
			return fmt.Errorf("%q is no address family, such as AF_UNIX or AF_INET6", w)
		}
	}
	if s.RestrictAddressFamilies == nil {
		s.RestrictAddressFamilies, s.FamiliesDenied = &words, denied
		return nil
	}
	have := slices.DeleteFunc(slices.Clone(*s.RestrictAddressFamilies), func(w string) bool { return slices.Contains(words, w) })
	if denied == s.FamiliesDenied {
		have = append(have, words...)
	}
	s.RestrictAddressFamilies = &have
	return nil
}

func priority(c *compiler, e Entry) error {
	n, err := ParseUint(e.Value, 31)
	if err == nil && n > 99 {
		err = outOfRange("priority", e.Value)
	}
	if err == nil {
		sched(c).Priority = int(n)
	}
	return err
}

func affinity(c *compiler, e Entry) error {
	s := sched(c)
	if e.Value == "" || e.Value == "numa" {
		s.Affinity = nil
		return nil
	}
	for w := range strings.FieldsFuncSeq(e.Value, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
		first, last, isRange := strings.Cut(w, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.Atoi(first)
		b, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || a < 0 || b < a || b > 1023 {
			return invalid("a list of processors", e.Value)
		}
		for ; a <= b; a++ {
			s.Affinity = append(s.Affinity, a)
		}
	}
	return nil
}

func ioClass(c *compiler, e Entry) error {
	classes := []string{"none", "realtime", "best-effort", "idle"}
	if n, err := ParseUint(e.Value, 31); err == nil && n < 4 {
		sched(c).IOClass = classes[n]
		return nil
	}
	return oneOf(func(c *compiler) *string { return &sched(c).IOClass }, classes...)(c, e)
}

func timerSlack(c *compiler, e Entry) error {
	n, err := ParseUint(e.Value, 63)
	if err != nil {
		d, _, err := calendar.ParseDuration(e.Value)
		if err != nil {
			return err
		}
		n = uint64(d.Nanoseconds())
	}
	sched(c).TimerSlack = n
	return nil
}

// dynamicUser turns on what DynamicUser=yes brings with it.
func dynamicUser(x *service.ExecContext) {
	if x.Sandbox == nil {
		x.Sandbox = &service.Sandbox{}
	}
	s := x.Sandbox
	s.PrivateTmp, s.RestrictSUIDSGID, x.NoNewPrivileges = true, true, true
	if s.ProtectSystem == "" {
		s.ProtectSystem = "strict"
	}
	if s.ProtectHome == "" {
		s.ProtectHome = "read-only"
	}
}

// credential is the place of a credential in the list; a later line of the same
// kind takes the place of an earlier one.
func credential(c *compiler, name string, loaded bool) (*service.Credential, error) {
	if name == "" || len(name) > 255 || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return nil, fmt.Errorf("%q cannot be the name of a credential", name)
	}
	list := &c.svc.Exec.Credentials
	for i := range *list {
		if x := &(*list)[i]; x.Name == name && (x.Source != "") == loaded {
			return x, nil
		}
	}
	*list = append(*list, service.Credential{Name: name})
	return &(*list)[len(*list)-1], nil
}

func loadCredential(c *compiler, e Entry) error {
	if e.Value == "" {
		c.svc.Exec.Credentials = slices.DeleteFunc(c.svc.Exec.Credentials, func(x service.Credential) bool { return x.Source != "" })
		return nil
	}
	name, source, ok := strings.Cut(e.Value, ":")
	if !ok {
		source = name
	}
	source, err := c.expand(source)
	if err != nil {
		return err
	}
	if strings.HasPrefix(source, "/") {
		if source, err = cleanPath(source); err != nil {
			return err
		}
	} else if source == "" || strings.Contains(source, "/") {
		return fmt.Errorf("%q is neither an absolute path nor the name of a credential", source)
	}
	x, err := credential(c, name, true)
	if err == nil {
		x.Source = source
	}
	return err
}

func setCredential(c *compiler, e Entry) error {
	if e.Value == "" {
		c.svc.Exec.Credentials = slices.DeleteFunc(c.svc.Exec.Credentials, func(x service.Credential) bool { return x.Source == "" })
		return nil
	}
	name, value, ok := strings.Cut(e.Value, ":")
	if !ok {
		return fmt.Errorf("%q has no value behind a colon", e.Value)
	}
	value, err := c.expand(value)
	if err != nil {
		return err
	}
	var data []byte
	for value != "" {
		if value[0] == '\\' {
			if b, n := unescapeOne(value[1:]); n > 0 {
				data, value = append(data, b...), value[1+n:]
				continue
			}
		}
		data, value = append(data, value[0]), value[1:]
	}
	x, err := credential(c, name, false)
	if err == nil {
		x.Data = data
	}
	return err
}
