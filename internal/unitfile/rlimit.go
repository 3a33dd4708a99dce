package unitfile

import (
	"fmt"
	"math"
	"strings"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/service"
)

// rlimits gives the reader of each resource's values.
var rlimits = map[string]func(string) (uint64, error){
	"AS":         byteLimit,
	"CORE":       byteLimit,
	"CPU":        secondsLimit,
	"DATA":       byteLimit,
	"FSIZE":      byteLimit,
	"LOCKS":      countLimit,
	"MEMLOCK":    byteLimit,
	"MSGQUEUE":   byteLimit,
	"NICE":       niceLimit,
	"NOFILE":     countLimit,
	"NPROC":      countLimit,
	"RSS":        byteLimit,
	"RTPRIO":     countLimit,
	"RTTIME":     usecLimit,
	"SIGPENDING": countLimit,
	"STACK":      byteLimit,
}

// RlimitName gives the resource of a name, which may have the prefix Limit or
// RLIMIT_.
func RlimitName(s string) (string, error) {
	for _, prefix := range []string{"", "Limit", "RLIMIT_"} {
		if name, ok := strings.CutPrefix(s, prefix); ok && rlimits[name] != nil {
			return name, nil
		}
	}
	return "", invalid("a resource", s)
}

// ParseRlimit reads "limit" or "soft:hard" in the unit of the resource.
func ParseRlimit(resource, s string) (service.Rlimit, error) {
	read := rlimits[resource]
	if read == nil {
		return service.Rlimit{}, invalid("a resource", resource)
	}
	first, second, two := strings.Cut(s, ":")
	soft, err := limit(read, first)
	if err != nil {
		return service.Rlimit{}, err
	}
	hard := soft
	if two {
		if hard, err = limit(read, second); err != nil {
			return service.Rlimit{}, err
		}
	}
	if soft > hard {
		return service.Rlimit{}, fmt.Errorf("%w: %q", ErrOrder, s)
	}
	return service.Rlimit{Soft: soft, Hard: hard}, nil
}

func limit(read func(string) (uint64, error), s string) (uint64, error) {
	if s == "infinity" {
		return math.MaxUint64, nil
	}
	return read(s)
}

func countLimit(s string) (uint64, error) {
	n, err := ParseUint(s, 64)
	if err == nil && n == math.MaxUint64 {
		err = outOfRange("limit", s)
	}
	return n, err
}

func byteLimit(s string) (uint64, error) {
	n, err := ParseSize(s, 1024)
	if err == nil && n == math.MaxUint64 {
		err = outOfRange("limit", s)
	}
	return n, err
}

// secondsLimit rounds up, so that the limit is never tighter than asked.
func secondsLimit(s string) (uint64, error) {
	usec, err := calendar.ParseUsec(s, calendar.Second)
	if err != nil || usec == calendar.Infinity {
		return usec, err
	}
	return usec/calendar.Second + min(usec%calendar.Second, 1), nil
}

func usecLimit(s string) (uint64, error) {
	return calendar.ParseUsec(s, calendar.Microsecond)
}

// niceLimit reads 0 to 40; with a sign the text is a nice level n, which is the
// limit 20-n.
func niceLimit(s string) (uint64, error) {
	if strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") {
		n, err := ParseNice(s)
		return uint64(20 - n), err
	}
	n, err := ParseUint(s, 64)
	if err == nil && n > 40 {
		err = outOfRange("nice limit", s)
	}
	return n, err
}
