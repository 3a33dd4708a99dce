package unitfile

import (
	"fmt"
	"slices"
	"strings"

	"legion.dev/legion/internal/service"
)

// ownField are the directives for which a pod has fields of its own: what may
// be seen in one place only is said there.
var ownField = map[string]string{
	"User": "securityContext.runAsUser", "Group": "securityContext.runAsGroup",
	"SupplementaryGroups": "securityContext.supplementalGroups", "DynamicUser": "securityContext.runAsUser",
	"CapabilityBoundingSet": "securityContext.capabilities", "NoNewPrivileges": "securityContext.allowPrivilegeEscalation",
	"TimeoutStopSec": "terminationGracePeriodSeconds", "TimeoutSec": "terminationGracePeriodSeconds",
}

// ofUnit are those that speak of the unit as a whole, and of other units, or
// that would give more rights than the pod has.
var ofUnit = []string{"StartLimitInterval", "StartLimitBurst", "Sockets", "PermissionsStartOnly", "RestartMode", "FailureAction", "SuccessAction", "StartLimitAction", "RebootArgument"}

// Overlays says whether a directive of [Service] can be laid over a container.
func Overlays(directive string) bool {
	d := Lookup("Service", directive)
	return d != nil && d.Honoured() && ownField[directive] == "" && !slices.Contains(ofUnit, directive)
}

// delays end a back-off: they say when to restart instead.
var delays = []string{"RestartSec", "RestartSteps", "RestartMaxDelaySec"}

// Overlay lays the directives of a file's [Service] over a service that was
// compiled from something else. It is strict: a directive that is unknown, not
// honoured or a pod's own field, or that has a wrong value, is an error, with
// its line.
func Overlay(s service.Service, f *File, opts Options) (service.Service, error) {
	wrong := func(line int, format string, args ...any) error {
		return &Error{f.Path, line, fmt.Sprintf(format, args...)}
	}
	c := newCompiler(s.Name+".service", f.Path, opts.WithDefaults())
	c.svc = s
	if s.Readiness != nil {
		c.readiness = *s.Readiness
	}
	if s.Liveness != nil {
		c.liveness = *s.Liveness
	}
	for _, w := range f.Warnings {
		return s, wrong(w.Line, "%s", w.Text)
	}
	for _, e := range f.Entries {
		d := Lookup(e.Section, e.Key)
		switch {
		case e.Section != "Service":
			return s, wrong(e.Line, "only [Service] has a meaning here, not [%s]", e.Section)
		case d == nil:
			return s, wrong(e.Line, "%s= is unknown in section [Service]", e.Key)
		case !d.Honoured():
			return s, wrong(e.Line, "%s= is not honoured yet: %s", e.Key, d.Reason)
		case ownField[e.Key] != "":
			return s, wrong(e.Line, "%s= is %s of the pod: set that", e.Key, ownField[e.Key])
		case slices.Contains(ofUnit, e.Key):
			return s, wrong(e.Line, "%s= has no meaning in a pod", e.Key)
		}
		if err := d.set(c, e); err != nil {
			return s, wrong(e.Line, "%s= %v", e.Key, err)
		}
		if slices.Contains(delays, e.Key) {
			c.svc.Restart.Backoff = nil
		}
	}
	if err := c.finish(); err != nil {
		return s, wrong(0, "%v", err)
	}
	for _, w := range c.group.Warnings {
		return s, wrong(w.Line, "%s", w.Text)
	}
	return c.svc, nil
}

// ExpandName replaces the specifiers that come from the unit's name, so that
// the text means the same where the name is another; all others stay.
func ExpandName(unit, text string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '%' || i == len(text)-1 {
			b.WriteByte(text[i])
			continue
		}
		i++
		value, err := "", errUnknownSpecifier
		if text[i] != '%' {
			value, err = nameSpecifier(unit, text[i])
		}
		switch err {
		case nil:
			b.WriteString(EscapeSpecifiers(value))
		case errUnknownSpecifier:
			b.WriteString(text[i-1 : i+1])
		default:
			return "", fmt.Errorf("cannot resolve %%%c in %q: %w", text[i], text, err)
		}
	}
	return b.String(), nil
}
