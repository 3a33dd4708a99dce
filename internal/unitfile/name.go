package unitfile

import (
	"fmt"
	"slices"
	"strings"
)

// maxName is the longest name of a unit, in bytes.
const maxName = 255

// Suffixes are the types of unit that systemd has.
var Suffixes = []string{
	".service", ".socket", ".target", ".device", ".mount", ".automount",
	".swap", ".timer", ".path", ".slice", ".scope",
}

// NameKind says what sort of name a unit has.
type NameKind uint

// The kinds of name.
const (
	Plain    NameKind = 1 << iota // cron.service
	Instance                      // getty@tty1.service
	Template                      // getty@.service
	AnyName  = Plain | Instance | Template
)

const (
	letters   = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	nameChars = "0123456789" + letters + `:-_.\`
)

func onlyChars(s, chars string) bool { return strings.Trim(s, chars) == "" }

// ParseName takes a unit's name apart: prefix, instance (without @) and suffix
// (with its dot). kind is 0 for what is no valid name.
func ParseName(name string) (prefix, instance, suffix string, kind NameKind) {
	dot := strings.LastIndexByte(name, '.')
	if dot <= 0 || len(name) > maxName || !slices.Contains(Suffixes, name[dot:]) {
		return "", "", "", 0
	}
	stem, suffix := name[:dot], name[dot:]
	prefix, instance, at := strings.Cut(stem, "@")
	if prefix == "" || !onlyChars(prefix, nameChars) || !onlyChars(instance, nameChars+"@") {
		return "", "", "", 0
	}
	switch {
	case !at:
		kind = Plain
	case instance == "":
		kind = Template
	default:
		kind = Instance
	}
	return prefix, instance, suffix, kind
}

// ValidName says whether name is a unit's name of one of the kinds.
func ValidName(name string, kinds NameKind) bool {
	_, _, _, kind := ParseName(name)
	return kind&kinds != 0
}

// ValidPrefix and ValidInstance say whether s can be that part of a name.
func ValidPrefix(s string) bool { return s != "" && onlyChars(s, nameChars) }

// ValidInstance: see ValidPrefix.
func ValidInstance(s string) bool { return s != "" && onlyChars(s, nameChars+"@") }

// TemplateOf gives the template of an instance: "getty@.service".
func TemplateOf(name string) (string, error) {
	prefix, _, suffix, kind := ParseName(name)
	if kind&(Instance|Template) == 0 {
		return "", fmt.Errorf("%q is no instance of a template", name)
	}
	return prefix + "@" + suffix, nil
}

// ReplaceInstance puts another instance into a name.
func ReplaceInstance(name, instance string) (string, error) {
	prefix, _, suffix, kind := ParseName(name)
	if kind&(Instance|Template) == 0 || !ValidInstance(instance) {
		return "", fmt.Errorf("cannot make an instance %q of %q", instance, name)
	}
	return BuildName(prefix, instance, true, suffix)
}

// BuildName joins the parts of a name; at says whether there is an instance.
func BuildName(prefix, instance string, at bool, suffix string) (string, error) {
	name := prefix + suffix
	if at {
		name = prefix + "@" + instance + suffix
	}
	if !ValidName(name, AnyName) {
		return "", fmt.Errorf("%q is not a valid unit name", name)
	}
	return name, nil
}

// ChangeSuffix gives a unit of another type the same stem.
func ChangeSuffix(name, suffix string) (string, error) {
	prefix, instance, _, kind := ParseName(name)
	if kind == 0 {
		return "", fmt.Errorf("%q is not a valid unit name", name)
	}
	return BuildName(prefix, instance, kind != Plain, suffix)
}

// Mangle turns what a person types into a unit's name: "cron" is cron.service,
// a path a mount or a device, other characters are escaped. Where globs is set,
// patterns are left alone.
func Mangle(s string, globs bool) (string, error) {
	switch {
	case s == "":
		return "", fmt.Errorf("the name of a unit is empty")
	case ValidName(s, AnyName):
		return s, nil
	case globs && onlyChars(s, nameChars+"@*?[]!-^"):
		if strings.ContainsAny(s, "*?[") {
			return s, nil
		}
	}
	if strings.HasPrefix(s, "/dev/") || strings.HasPrefix(s, "/sys/") {
		return NameFromPath(s, ".device")
	}
	if s[0] == '/' {
		if name, err := NameFromPath(s, ".mount"); err == nil {
			return name, nil
		}
	}
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c == '/':
			b.WriteByte('-')
		case strings.IndexByte(nameChars+"@", c) < 0:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	name := b.String()
	if !ValidName(name, AnyName) {
		name += ".service"
	}
	if !ValidName(name, AnyName) {
		return "", fmt.Errorf("%q is not a valid unit name", s)
	}
	return name, nil
}

// Escape makes any text part of a unit's name (systemd-escape(1)).
func Escape(s string) string {
	var b strings.Builder
	for i, c := range []byte(s) {
		switch {
		case c == '/':
			b.WriteByte('-')
		case c == '-' || c == '\\' || strings.IndexByte(nameChars, c) < 0 || i == 0 && c == '.':
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// Unescape undoes Escape.
func Unescape(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '-':
			b.WriteByte('/')
		case s[i] == '\\':
			c, n := unescapeOne(s[i+1:])
			if n != 3 || s[i+1] != 'x' {
				return "", fmt.Errorf("%q is not escaped as a unit name", s)
			}
			b.Write(c)
			i += n
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), nil
}

// EscapePath makes a path part of a unit's name: "/" is "-", "/a//b/" is "a-b".
func EscapePath(p string) (string, error) {
	s := simplify(p)
	if slices.Contains(strings.Split(s, "/"), "..") {
		return "", fmt.Errorf("path %q contains \"..\"", p)
	}
	if s = strings.TrimPrefix(s, "/"); s == "" || s == "." {
		return "-", nil
	}
	return Escape(s), nil
}

// UnescapePath undoes EscapePath; the result is absolute.
func UnescapePath(s string) (string, error) {
	if s == "-" {
		return "/", nil
	}
	text, err := Unescape(s)
	if err != nil {
		return "", err
	}
	p := "/" + text
	if text == "" || simplify(p) != p || slices.Contains(strings.Split(p, "/"), "..") {
		return "", fmt.Errorf("%q is not an escaped path", s)
	}
	return p, nil
}

// NameFromPath names the unit of a path: "/home" and ".mount" is home.mount.
func NameFromPath(p, suffix string) (string, error) {
	s, err := EscapePath(p)
	if err != nil {
		return "", err
	}
	return BuildName(s, "", false, suffix)
}

// NameToPath undoes NameFromPath.
func NameToPath(name string) (string, error) {
	prefix, _, _, kind := ParseName(name)
	if kind == 0 {
		return "", fmt.Errorf("%q is not a valid unit name", name)
	}
	return UnescapePath(prefix)
}
