package calendar

import "time"

// wall is a time as a clock on the wall shows it, without a zone.
type wall struct {
	year, month, day, hour, minute int
	usec                           int // of the minute
}

// Next gives the first time after the given one at which the expression
// elapses; false if it never does again. Where the expression names no zone it
// is read in local.
//
// When clocks are put forward, the times that they skip do not elapse. When they
// are put back, the times that they show twice elapse the first time only, unless
// the expression has "*" for its hour: every half hour is every half hour.
func (e *Expression) Next(after time.Time, local *time.Location) (time.Time, bool) {
	zone := e.zone
	if zone == nil {
		zone = local
	}
	// Offsets are constant between two changes of the clock: in such a span
	// the wall's time maps to one instant.
	t := after.In(zone).Truncate(time.Microsecond).Add(time.Microsecond)
	for t.Year() <= lastYear {
		begin, end := t.ZoneBounds()
		if !end.IsZero() && !end.After(t) {
			// Past the last change in the database, package time takes every
			// year for 365 days: on December 31st of a leap year it is early.
			end = t.Add(time.Hour)
		}
		_, offset := t.Zone()
		w, ok := e.match(wallOf(t))
		if !ok && end.IsZero() {
			return time.Time{}, false
		}
		found := w.at(offset)
		switch {
		case !ok || !end.IsZero() && !found.Before(end):
			if !ok || end.After(found.Add(-48*time.Hour)) {
				t = end.In(zone)
				continue
			}
			// Nothing elapses for longer: on to the span that it is in.
			t = found.Add(-48 * time.Hour).In(zone)
		case e.hour != nil && shownBefore(found, begin, offset):
			t = found.In(zone).Add(time.Microsecond)
		default:
			return found.In(zone), true
		}
	}
	return time.Time{}, false
}

// shownBefore says whether the clock showed the same time already before it was
// put back at begin.
func shownBefore(t, begin time.Time, offset int) bool {
	if begin.IsZero() {
		return false
	}
	_, earlier := begin.Add(-time.Nanosecond).Zone()
	return t.Sub(begin) < time.Duration(earlier-offset)*time.Second
}

func wallOf(t time.Time) wall {
	y, m, d := t.Date()
	return wall{y, int(m), d, t.Hour(), t.Minute(), t.Second()*usec + t.Nanosecond()/1000}
}

func (w wall) at(offset int) time.Time {
	return time.Date(w.year, time.Month(w.month), w.day, w.hour, w.minute, 0, 0, time.UTC).
		Add(time.Duration(w.usec)*time.Microsecond - time.Duration(offset)*time.Second)
}

// match finds the first time on the wall, from w on, that the expression has.
func (e *Expression) match(w wall) (wall, bool) {
	for y, ok := e.year.next(w.year, lastYear); ok; y, ok = e.year.next(y+1, lastYear) {
		if y > w.year {
			w = wall{year: y, month: 1, day: 1}
		}
		for m, ok := e.month.next(w.month, 12); ok; m, ok = e.month.next(m+1, 12) {
			if m > w.month {
				w = wall{year: y, month: m, day: 1}
			}
			if found, ok := e.matchDay(w); ok {
				return found, true
			}
		}
	}
	return wall{}, false
}

// matchDay looks in the month of w only.
func (e *Expression) matchDay(w wall) (wall, bool) {
	last := time.Date(w.year, time.Month(w.month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
	days := e.day
	if e.fromEnd {
		days = days.mirrored(last)
	}
	for d, ok := days.next(w.day, last); ok; d, ok = days.next(d+1, last) {
		if d > w.day {
			w = wall{year: w.year, month: w.month, day: d}
		}
		if !e.onWeekday(w) {
			continue
		}
		if found, ok := e.matchTime(w); ok {
			return found, true
		}
	}
	return wall{}, false
}

func (e *Expression) onWeekday(w wall) bool {
	if e.weekdays == 0 {
		return true
	}
	day := time.Date(w.year, time.Month(w.month), w.day, 0, 0, 0, 0, time.UTC).Weekday()
	return e.weekdays&(1<<((int(day)+6)%7)) != 0
}

// matchTime looks in the day of w only.
func (e *Expression) matchTime(w wall) (wall, bool) {
	for h, ok := e.hour.next(w.hour, 23); ok; h, ok = e.hour.next(h+1, 23) {
		if h > w.hour {
			w.hour, w.minute, w.usec = h, 0, 0
		}
		for m, ok := e.minute.next(w.minute, 59); ok; m, ok = e.minute.next(m+1, 59) {
			if m > w.minute {
				w.minute, w.usec = m, 0
			}
			if s, ok := e.second.next(w.usec, 60*usec-1); ok {
				w.usec = s
				return w, true
			}
		}
	}
	return wall{}, false
}

// next finds the first value from low to high.
func (c chain) next(low, high int) (int, bool) {
	if low > high {
		return 0, false
	}
	if len(c) == 0 {
		return low, true
	}
	best := high + 1
	for _, p := range c {
		v := p.start
		if v < low {
			if p.repeat == 0 {
				continue
			}
			v += (low - v + p.repeat - 1) / p.repeat * p.repeat
		}
		if p.stop < 0 || v <= p.stop {
			best = min(best, v)
		}
	}
	return best, best <= high
}

// mirrored turns days that count from the end of a month of so many days into
// those that count from its begin.
func (c chain) mirrored(last int) chain {
	out := make(chain, len(c))
	for i, p := range c {
		p.start = last + 1 - p.start
		if p.stop >= 0 {
			p.start, p.stop = last+1-p.stop, p.start
		}
		out[i] = p
	}
	return out
}
