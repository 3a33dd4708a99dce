package unitfile

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/service"
)

// setter carries out one assignment.
type setter func(*compiler, Entry) error

// accept takes a value that has no effect on supervision.
func accept(*compiler, Entry) error { return nil }

func text(field func(*compiler) *string) setter {
	return func(c *compiler, e Entry) error {
		s, err := c.expand(e.Value)
		if err == nil {
			*field(c) = s
		}
		return err
	}
}

func boolean(field func(*compiler) *bool) setter {
	return func(c *compiler, e Entry) error {
		v, err := ParseBool(e.Value)
		if err == nil {
			*field(c) = v
		}
		return err
	}
}

// not is a boolean whose field says the opposite.
func not(field func(*compiler) *bool) setter {
	return func(c *compiler, e Entry) error {
		v, err := ParseBool(e.Value)
		if err == nil {
			*field(c) = !v
		}
		return err
	}
}

// oneOf takes one of the words of a set.
func oneOf[T ~string](field func(*compiler) *T, words ...T) setter {
	return func(c *compiler, e Entry) error {
		if !slices.Contains(words, T(e.Value)) {
			return fmt.Errorf("%q is none of %s", e.Value, join(words))
		}
		*field(c) = T(e.Value)
		return nil
	}
}

func join[T ~string](words []T) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = string(w)
	}
	return strings.Join(out, ", ")
}

// span takes a duration; without end is 0.
func span(field func(*compiler) *time.Duration) setter {
	return func(c *compiler, e Entry) error {
		d, infinite, err := calendar.ParseDuration(e.Value)
		if err != nil {
			return err
		}
		if infinite {
			d = 0
		}
		*field(c) = d
		return nil
	}
}

// delay takes a duration that must end.
func delay(field func(*compiler) *time.Duration) setter {
	return func(c *compiler, e Entry) error {
		d, infinite, err := calendar.ParseDuration(e.Value)
		if err == nil && infinite {
			err = outOfRange("delay", e.Value)
		}
		if err == nil {
			*field(c) = d
		}
		return err
	}
}

func signal(field func(*compiler) *int) setter {
	return func(c *compiler, e Entry) error {
		n, err := ParseSignal(e.Value)
		if err == nil {
			*field(c) = n
		}
		return err
	}
}

// integer takes a number in a range.
func integer(field func(*compiler) **int, low, high int64) setter {
	return func(c *compiler, e Entry) error {
		n, err := ParseInt(e.Value, 64)
		if err != nil {
			return err
		}
		if n < low || n > high {
			return fmt.Errorf("%w: %d is not from %d to %d", ErrRange, n, low, high)
		}
		v := int(n)
		*field(c) = &v
		return nil
	}
}

// units adds names of units; the empty value does not reset the list
// (systemd.unit(5)).
func units(field func(*service.Dependencies) *[]string) setter {
	return func(c *compiler, e Entry) error {
		list, err := c.words(e.Value)
		if err != nil {
			return err
		}
		to := field(&c.group.Deps)
		for _, name := range list {
			switch {
			case !ValidName(name, Plain|Instance):
				c.warn(e, "ignored: %q is not the name of a unit", name)
			case name != c.name && !slices.Contains(*to, name):
				*to = append(*to, name)
			}
		}
		return nil
	}
}

// installed adds names of [Install]; a template there stands for the instance.
func installed(field func(*service.Dependencies) *[]string) setter {
	return func(c *compiler, e Entry) error {
		list, err := c.words(e.Value)
		if err != nil {
			return err
		}
		to := field(&c.group.Deps)
		for _, name := range list {
			if ValidName(name, AnyName) && !slices.Contains(*to, name) {
				*to = append(*to, name)
			} else if !ValidName(name, AnyName) {
				c.warn(e, "ignored: %q is not the name of a unit", name)
			}
		}
		return nil
	}
}

// list takes words; the empty value resets.
func list(field func(*compiler) *[]string) setter {
	return func(c *compiler, e Entry) error {
		to := field(c)
		if e.Value == "" {
			*to = nil
			return nil
		}
		words, err := c.words(e.Value)
		if err == nil {
			*to = append(*to, words...)
		}
		return err
	}
}

// names is list for names of environment variables.
func names(field func(*compiler) *[]string, valid func(string) bool) setter {
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
			if valid(w) {
				*to = append(*to, w)
			} else {
				c.warn(e, "ignored: %q is not valid here", w)
			}
		}
		return nil
	}
}

func assignment(s string) bool {
	name, value, ok := strings.Cut(s, "=")
	return ok && ValidEnvironmentName(name) && !strings.Contains(value, "\x00")
}

// commands takes Exec…= lines. A wrong one must not be passed over: the unit
// would run with a part of it missing.
func commands(field func(*service.Service) *[]service.Command) setter {
	return func(c *compiler, e Entry) error {
		to := field(&c.svc)
		if e.Value == "" {
			*to = onlyConditions(*to, true)
			return nil
		}
		cmds, err := ParseExec(e.Value, c.expand)
		if err != nil {
			return fatalError{fmt.Errorf("%s= %w", e.Key, err)}
		}
		*to = append(*to, cmds...)
		return nil
	}
}

// execCondition takes ExecCondition= lines: they run before those of
// ExecStartPre=, wherever the file has them.
func execCondition(c *compiler, e Entry) error {
	others := onlyConditions(c.svc.StartPre, false)
	if e.Value == "" {
		c.svc.StartPre = others
		return nil
	}
	cmds, err := ParseExec(e.Value, c.expand)
	if err != nil {
		return fatalError{fmt.Errorf("%s= %w", e.Key, err)}
	}
	for i := range cmds {
		cmds[i].Condition = true
	}
	c.svc.StartPre = slices.Concat(onlyConditions(c.svc.StartPre, true), cmds, others)
	return nil
}

// onlyConditions are the commands of ExecCondition=, or the others.
func onlyConditions(cmds []service.Command, conditions bool) []service.Command {
	var out []service.Command
	for _, c := range cmds {
		if c.Condition == conditions {
			out = append(out, c)
		}
	}
	return out
}

func condition(c *compiler, e Entry) error {
	kind, assert := strings.CutPrefix(e.Key, "Assert")
	if !assert {
		kind = strings.TrimPrefix(e.Key, "Condition")
	}
	if e.Value == "" {
		c.group.Conditions = slices.DeleteFunc(c.group.Conditions, func(x service.Condition) bool { return x.Assert == assert })
		return nil
	}
	value := e.Value
	value, trigger := strings.CutPrefix(value, "|")
	value, negate := strings.CutPrefix(value, "!")
	value, err := c.expand(strings.TrimLeft(value, blank))
	if err != nil {
		return err
	}
	c.group.Conditions = append(c.group.Conditions, service.Condition{
		Kind: kind, Value: value, Negate: negate, Trigger: trigger, Assert: assert,
	})
	return nil
}

func burst(c *compiler, e Entry) error {
	n, err := ParseUint(e.Value, 31)
	if err == nil {
		c.group.StartLimit.Burst = int(n)
	}
	return err
}

func interval(c *compiler, e Entry) error {
	if err := span(func(c *compiler) *time.Duration { return &c.group.StartLimit.Interval })(c, e); err != nil {
		return err
	}
	if c.group.StartLimit.Interval == 0 {
		c.group.StartLimit.Burst = 0 // no limit
	}
	return nil
}
