package unitfile

import (
	"fmt"
	"slices"
	"strings"

	"legion.dev/legion/internal/service"
)

// The setters of systemd.exec(5).

func absolute(field func(*compiler) *string) setter {
	return func(c *compiler, e Entry) error {
		if e.Value == "" {
			*field(c) = ""
			return nil
		}
		s, err := c.expand(e.Value)
		if err != nil {
			return err
		}
		if s, err = cleanPath(s); err == nil {
			*field(c) = s
		}
		return err
	}
}

func pidFile(c *compiler, e Entry) error {
	if e.Value == "" {
		c.svc.PIDFile = ""
		return nil
	}
	s, err := c.expand(e.Value)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(s, "/") {
		s = c.opts.RuntimeDir + "/" + s
	}
	s, err = cleanPath(s)
	if err != nil {
		return err
	}
	// Old scripts name the link that became /run.
	if rest, ok := strings.CutPrefix(s, "/var/run/"); ok {
		s = "/run/" + rest
	}
	c.svc.PIDFile = s
	return nil
}

func workingDirectory(c *compiler, e Entry) error {
	x := &c.svc.Exec
	value, optional := strings.CutPrefix(e.Value, "-")
	if value == "" {
		x.WorkingDirectory, x.WorkingDirectoryOptional = "", false
		return nil
	}
	s, err := c.expand(value)
	if err == nil && s != "~" {
		s, err = cleanPath(s)
	}
	if err != nil {
		if !optional {
			return fatalError{fmt.Errorf("%s= %w", e.Key, err)}
		}
		return err
	}
	x.WorkingDirectory, x.WorkingDirectoryOptional = s, optional
	return nil
}

// account takes the name or number of a user or group. Running as somebody
// else than was asked for is worse than not running.
func account(field func(*compiler) *string) setter {
	return func(c *compiler, e Entry) error {
		s, err := c.expand(e.Value)
		if err == nil && s != "" && !validAccount(s) {
			err = fmt.Errorf("%q is not a valid name or number", s)
		}
		if err != nil {
			return fatalError{fmt.Errorf("%s= %w", e.Key, err)}
		}
		*field(c) = s
		return nil
	}
}

func validAccount(s string) bool {
	if strings.Trim(s, "0123456789") == "" {
		_, err := ParseUint(s, 32)
		return err == nil && s != "4294967295" && s != "65535"
	}
	return !strings.ContainsAny(s, ":/ \t\n\r") && s[0] != '-' && s != "." && s != ".." && len(s) < 256
}

func environmentFile(c *compiler, e Entry) error {
	x := &c.svc.Exec
	if e.Value == "" {
		x.EnvironmentFiles = nil
		return nil
	}
	value, optional := strings.CutPrefix(e.Value, "-")
	s, err := c.expand(value)
	if err != nil {
		return err
	}
	if s, err = cleanPath(s); err != nil {
		return err
	}
	x.EnvironmentFiles = append(x.EnvironmentFiles, service.EnvironmentFile{Path: s, Optional: optional})
	return nil
}

func rlimit(c *compiler, e Entry) error {
	resource := strings.TrimPrefix(e.Key, "Limit")
	l, err := ParseRlimit(resource, e.Value)
	if err != nil {
		return err
	}
	if c.svc.Exec.Rlimits == nil {
		c.svc.Exec.Rlimits = map[string]service.Rlimit{}
	}
	c.svc.Exec.Rlimits[resource] = l
	return nil
}

func directories(c *compiler, e Entry) error {
	to := c.directories(e.Key)
	if e.Value == "" {
		*to = nil
		return nil
	}
	words, err := c.words(e.Value)
	if err != nil {
		return err
	}
	for _, w := range words {
		name, link, linked := strings.Cut(w, ":")
		d := service.Directory{Path: simplify(name)}
		if linked {
			d.Links = []string{simplify(link)}
		}
		if slices.ContainsFunc(append(d.Links, d.Path), func(p string) bool {
			return p == "" || p[0] == '/' || slices.Contains(strings.Split(p, "/"), "..")
		}) {
			c.warn(e, "ignored: %q is not a relative path below the base directory", w)
			continue
		}
		*to = append(*to, d)
	}
	return nil
}

func directoryMode(c *compiler, e Entry) error {
	m, err := ParseMode(e.Value)
	if err == nil {
		c.modes[strings.TrimSuffix(e.Key, "Mode")] = m
	}
	return err
}

func umask(c *compiler, e Entry) error {
	m, err := ParseMode(e.Value)
	if err == nil {
		c.svc.Exec.UMask = &m
	}
	return err
}

// outputs are the words for standard output and error that mean Legion's log.
var outputs = map[string]string{
	"journal": "journal", "syslog": "journal", "kmsg": "journal",
	"journal+console": "journal", "syslog+console": "journal", "kmsg+console": "journal",
	"null": "null", "inherit": "inherit",
}

func output(field func(*compiler) *string) setter {
	return func(c *compiler, e Entry) error {
		s, err := c.expand(e.Value)
		if err != nil {
			return err
		}
		for _, kind := range []string{"file:", "append:", "truncate:"} {
			if p, ok := strings.CutPrefix(s, kind); ok {
				if p, err = cleanPath(p); err == nil {
					*field(c) = kind + p
				}
				return err
			}
		}
		to, ok := outputs[s]
		if !ok {
			return fmt.Errorf("%q is not supported; the output goes to the log", s)
		}
		*field(c) = to
		return nil
	}
}

func delegate(c *compiler, e Entry) error {
	v, err := ParseBool(e.Value)
	// A list of controllers means yes; an empty one delegates none, which is
	// still a cgroup of one's own.
	c.svc.Exec.Delegate = err != nil || v
	return nil
}
