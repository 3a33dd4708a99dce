package unitfile

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"legion.dev/legion/internal/service"
)

// The setters of systemd.resource-control(5).

// OfResources says whether a directive is one of those that are honoured.
func OfResources(directive string) bool {
	return slices.ContainsFunc(resourceRows, func(r row) bool {
		return r.set != nil && slices.Contains(strings.Fields(r.names), directive)
	})
}

func resources(c *compiler) *service.Limits {
	if c.svc.Resources == nil {
		c.svc.Resources = &service.Limits{}
	}
	return c.svc.Resources
}

// share reads "12.5%" as 1/10000.
func share(s string) (uint64, bool, error) {
	number, ok := strings.CutSuffix(s, "%")
	if !ok {
		return 0, false, nil
	}
	whole, fraction, _ := strings.Cut(strings.TrimSpace(number), ".")
	n, err := ParseUint(whole, 31)
	if err != nil || len(fraction) > 2 || strings.Trim(fraction, "0123456789") != "" {
		return 0, true, invalid("a percentage", s)
	}
	n *= 100
	for i, r := range fraction {
		n += uint64(r-'0') * []uint64{10, 1}[i]
	}
	return n, true, nil
}

// bytesOf takes bytes, a percentage of the machine's memory, or infinity.
func bytesOf(field func(*service.Limits) **service.Amount) setter {
	return func(c *compiler, e Entry) error {
		a, err := amountOf(e.Value, func(s string) (uint64, error) { return ParseSize(s, 1024) })
		if err == nil {
			*field(resources(c)) = a
		}
		return err
	}
}

func tasksMax(c *compiler, e Entry) error {
	a, err := amountOf(e.Value, func(s string) (uint64, error) { return ParseUint(s, 63) })
	if err == nil && a != nil && a.Value == 0 && a.Share == 0 {
		err = outOfRange("number of tasks", e.Value)
	}
	if err == nil {
		resources(c).TasksMax = a
	}
	return err
}

func amountOf(s string, number func(string) (uint64, error)) (*service.Amount, error) {
	switch s {
	case "":
		return nil, nil
	case "infinity":
		return &service.Amount{Value: math.MaxUint64}, nil
	}
	part, isShare, err := share(s)
	if isShare {
		if err == nil && part > 10000 {
			err = outOfRange("percentage", s)
		}
		return &service.Amount{Share: part}, err
	}
	n, err := number(s)
	return &service.Amount{Value: n}, err
}

func cpuQuota(c *compiler, e Entry) error {
	if e.Value == "" {
		resources(c).CPUQuota = 0
		return nil
	}
	n, ok, err := share(e.Value)
	if err == nil && (!ok || n == 0) {
		err = fmt.Errorf("%q is no percentage of a processor above 0", e.Value)
	}
	if err == nil {
		resources(c).CPUQuota = n
	}
	return err
}

func cpuWeight(c *compiler, e Entry) error {
	if e.Value == "idle" {
		r := resources(c)
		r.CPUWeight, r.CPUIdle = 0, true
		return nil
	}
	resources(c).CPUIdle = false
	return weight(1, 10000, 100, func(r *service.Limits) *uint64 { return &r.CPUWeight })(c, e)
}

// weight takes a number between low and high of which standard is what 100 is
// in version 2 of cgroups.
func weight(low, high, standard uint64, field func(*service.Limits) *uint64) setter {
	return func(c *compiler, e Entry) error {
		if e.Value == "" {
			*field(resources(c)) = 0
			return nil
		}
		n, err := ParseUint(e.Value, 63)
		if err == nil && (n < low || n > high) {
			err = outOfRange("weight", e.Value)
		}
		if err == nil {
			*field(resources(c)) = min(max(n*100/standard, 1), 10000)
		}
		return err
	}
}
