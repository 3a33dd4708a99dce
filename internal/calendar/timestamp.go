package calendar

import (
	"fmt"
	"time"
)

// FormatUTC prints microseconds since 1970 as "Thu 1970-01-01 00:00:01 UTC";
// false where that has no form: 0 and Infinity, which stand for no time, and
// what is after the year 9999.
func FormatUTC(usec uint64) (string, bool) {
	const end = 253402300800 * Second
	if usec == 0 || usec >= end {
		return "", false
	}
	return FormatTime(time.UnixMicro(int64(usec)).UTC()), true
}

// FormatTime prints a time as systemctl does, in its own zone.
func FormatTime(t time.Time) string { return t.Format("Mon 2006-01-02 15:04:05 MST") }

// FormatRelative prints an age in microseconds as systemctl does: "2 weeks 1 day
// ago", "5min 3s ago".
func FormatRelative(age uint64) string {
	count := func(n uint64, one string) string {
		if n == 1 {
			return "1 " + one
		}
		return fmt.Sprintf("%d %ss", n, one)
	}
	const dayWord, monthWord = "day", "month"
	switch d := age; {
	case d >= year:
		return count(d/year, "year") + " " + count(d%year/month, monthWord) + " ago"
	case d >= month:
		return count(d/month, monthWord) + " " + count(d%month/day, dayWord) + " ago"
	case d >= week:
		return count(d/week, "week") + " " + count(d%week/day, dayWord) + " ago"
	case d >= 2*day:
		return count(d/day, dayWord) + " ago"
	case d >= 25*hour:
		return fmt.Sprintf("1 day %dh ago", (d-day)/hour)
	case d >= 6*hour:
		return fmt.Sprintf("%dh ago", d/hour)
	case d >= hour:
		return fmt.Sprintf("%dh %dmin ago", d/hour, d%hour/minute)
	case d >= 5*minute:
		return fmt.Sprintf("%dmin ago", d/minute)
	case d >= minute:
		return fmt.Sprintf("%dmin %ds ago", d/minute, d%minute/Second)
	case d >= Second:
		return fmt.Sprintf("%ds ago", d/Second)
	case d >= Millisecond:
		return fmt.Sprintf("%dms ago", d/Millisecond)
	case d > 0:
		return fmt.Sprintf("%dus ago", d)
	}
	return "now"
}
