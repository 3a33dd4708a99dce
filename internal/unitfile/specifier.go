package unitfile

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
)

// Options is what a compilation takes from its surroundings. An empty field is
// "not known here": a unit that asks for it gets a warning, or does not load if
// its command needs it. WithDefaults fills in the directories.
type Options struct {
	// Root: the service manager runs as root.
	Root bool

	RuntimeDir, StateDir, CacheDir, LogsDir, ConfigDir string // %t %S %C %L %E
	TmpDir, VarTmpDir                                  string // %T %V

	User, Group, Home, Shell string // %u %g %h %s, of the service manager
	UID, GID                 int    // %U %G

	Hostname, MachineID, BootID, KernelRelease string // %H %m %b %v
	Architecture                               string // %a
	// OSRelease are the fields of os-release(5).
	OSRelease map[string]string // %o %w %B %W %M %A
}

// WithDefaults gives the directories of systemd's system manager to what is
// empty.
func (o Options) WithDefaults() Options {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	set(&o.RuntimeDir, "/run")
	set(&o.StateDir, "/var/lib")
	set(&o.CacheDir, "/var/cache")
	set(&o.LogsDir, "/var/log")
	set(&o.ConfigDir, "/etc")
	set(&o.TmpDir, "/tmp")
	set(&o.VarTmpDir, "/var/tmp")
	if o.Root {
		set(&o.User, "root")
		set(&o.Group, "root")
		set(&o.Home, "/root")
		set(&o.Shell, "/bin/sh")
	}
	return o
}

// errUnknownSpecifier: the letter means nothing, the text stays.
var errUnknownSpecifier = errors.New("unknown specifier")

// Expand replaces the specifiers (systemd.unit(5), "Specifiers") in a text that
// belongs to the unit. An unknown specifier stays as it is.
func (o Options) Expand(unit, fragment, text string) (string, error) {
	if !strings.Contains(text, "%") {
		return strings.Clone(text), nil // which does not keep the whole file
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' || i == len(text)-1 {
			b.WriteByte(text[i])
			continue
		}
		i++
		if text[i] == '%' {
			b.WriteByte('%')
			continue
		}
		value, err := o.specifier(unit, fragment, text[i])
		switch {
		case errors.Is(err, errUnknownSpecifier):
			b.WriteString(text[i-1 : i+1])
		case err != nil:
			return "", fmt.Errorf("cannot resolve %%%c in %q: %w", text[i], text, err)
		default:
			b.WriteString(value)
		}
	}
	return b.String(), nil
}

// EscapeSpecifiers makes a text mean itself where specifiers are expanded.
func EscapeSpecifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }

func known(value string) (string, error) {
	if value == "" {
		return "", errors.New("not known on this host")
	}
	return value, nil
}

func (o Options) specifier(unit, fragment string, c byte) (string, error) {
	if s, err := nameSpecifier(unit, c); !errors.Is(err, errUnknownSpecifier) {
		return s, err
	}
	switch c {
	case 't':
		return known(o.RuntimeDir)
	case 'S':
		return known(o.StateDir)
	case 'C':
		return known(o.CacheDir)
	case 'L':
		return known(o.LogsDir)
	case 'E':
		return known(o.ConfigDir)
	case 'T':
		return known(o.TmpDir)
	case 'V':
		return known(o.VarTmpDir)
	case 'd':
		return path.Join(o.RuntimeDir, "credentials", unit), nil
	case 'u':
		return known(o.User)
	case 'g':
		return known(o.Group)
	case 'U':
		return strconv.Itoa(o.UID), nil
	case 'G':
		return strconv.Itoa(o.GID), nil
	case 'h':
		return known(o.Home)
	case 's':
		return known(o.Shell)
	case 'H':
		return known(o.Hostname)
	case 'l':
		short, _, _ := strings.Cut(o.Hostname, ".")
		return known(short)
	case 'm':
		return known(o.MachineID)
	case 'b':
		return known(o.BootID)
	case 'v':
		return known(o.KernelRelease)
	case 'a':
		return known(o.Architecture)
	case 'y':
		return known(fragment)
	case 'Y':
		return known(path.Dir(fragment))
	}
	return o.osSpecifier(c)
}

// nameSpecifier resolves what comes from the unit's own name.
func nameSpecifier(unit string, c byte) (string, error) {
	prefix, instance, suffix, kind := ParseName(unit)
	last := prefix[strings.LastIndexByte(prefix, '-')+1:]
	switch c {
	case 'n':
		return unit, nil
	case 'N':
		return strings.TrimSuffix(unit, suffix), nil
	case 'p':
		return prefix, nil
	case 'P':
		return Unescape(prefix)
	case 'i':
		return instance, nil
	case 'I':
		return Unescape(instance)
	case 'j':
		return last, nil
	case 'J':
		return Unescape(last)
	case 'f':
		if kind == Instance {
			return UnescapePath(instance)
		}
		return UnescapePath(prefix)
	}
	return "", errUnknownSpecifier
}

// osSpecifier resolves the fields of os-release(5); an absent one is empty, as
// the file need not have them.
func (o Options) osSpecifier(c byte) (string, error) {
	field, ok := map[byte]string{
		'o': "ID", 'w': "VERSION_ID", 'B': "BUILD_ID", 'W': "VARIANT_ID", 'M': "IMAGE_ID", 'A': "IMAGE_VERSION",
	}[c]
	switch {
	case !ok:
		return "", errUnknownSpecifier
	case o.OSRelease == nil:
		return "", errors.New("there is no os-release file")
	}
	return o.OSRelease[field], nil
}
