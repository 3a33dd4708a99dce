package calendar

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestNormalize(t *testing.T) {
	for _, r := range rows(t, "calendar-normalize.tsv") {
		input, want := text(t, r[1]), text(t, r[2])
		e, err := Parse(input)
		if err != nil {
			t.Errorf("%s: %v", r[0], err)
			continue
		}
		if got := e.String(); got != want {
			t.Errorf("%s: %q is printed as %q, want %q", r[0], input, got, want)
		}
		again, err := Parse(want)
		if err != nil || again.String() != want {
			t.Errorf("%s: %q reads back as %v, %v", r[0], want, again, err)
		}
	}
}

func TestInvalid(t *testing.T) {
	for _, r := range rows(t, "calendar-invalid.tsv") {
		input := text(t, r[1])
		e, err := Parse(input)
		want := map[string]error{"EINVAL": ErrExpression, "ERANGE": ErrExpressionRange}[r[2]]
		if !errors.Is(err, want) {
			t.Errorf("%s: %q: %v, %v, want %v", r[0], input, e, err, want)
		}
	}
}

// zone reads the tz column of calendar-next.tsv.
func zone(t *testing.T, cell string) *time.Location {
	t.Helper()
	if cell == "null" {
		return time.UTC
	}
	name := text(t, cell)
	if strings.Contains(name, ",") {
		return posixZone(t, name)
	}
	if loc, err := time.LoadLocation(name); err == nil {
		return loc
	}
	return time.UTC
}

// posixZone makes a zone of a POSIX TZ string: a TZif file (RFC 8536) without
// transitions and with the string for its footer.
func posixZone(t *testing.T, tz string) *time.Location {
	t.Helper()
	var b bytes.Buffer
	for range 2 {
		b.WriteString("TZif2")
		b.Write(make([]byte, 15))
		for _, n := range []uint32{0, 0, 0, 0, 1, 4} { // isut, isstd, leap, times, types, chars
			_ = binary.Write(&b, binary.BigEndian, n)
		}
		b.Write([]byte{0, 0, 0, 0, 0, 0}) // offset 0, no DST, name 0
		b.WriteString("UTC\x00")
	}
	b.WriteString("\n" + tz + "\n")
	loc, err := time.LoadLocationFromTZData(tz, b.Bytes())
	if err != nil {
		t.Fatalf("%s: %v", tz, err)
	}
	return loc
}

func TestNext(t *testing.T) {
	for _, r := range rows(t, "calendar-next.tsv") {
		input := text(t, r[1])
		e, err := Parse(input)
		if err != nil {
			t.Errorf("%s: %v", r[0], err)
			continue
		}
		next, ok := e.Next(time.UnixMicro(int64(number(t, r[3]))), zone(t, r[2]))
		if r[4] == "none" {
			if ok {
				t.Errorf("%s: %q elapses at %v, want never", r[0], input, next)
			}
			continue
		}
		if want := time.UnixMicro(int64(number(t, r[4]))); !ok || !next.Equal(want) {
			t.Errorf("%s: %q elapses at %v, %v, want %v", r[0], input, next, ok, want.In(next.Location()))
		}
	}
}

func TestClockChanges(t *testing.T) {
	for _, c := range []struct{ expression, zone, after, want string }{
		// Put back at 03:00 CEST: 02:30 comes twice.
		{"*-*-* 02:30", "Europe/Berlin", "2025-10-25T12:00:00Z", "2025-10-26T00:30:00Z 2025-10-27T01:30:00Z"},
		{"*:30", "Europe/Berlin", "2025-10-26T00:00:00Z", "2025-10-26T00:30:00Z 2025-10-26T01:30:00Z 2025-10-26T02:30:00Z"},
		{"hourly", "Europe/Berlin", "2025-10-25T23:30:00Z", "2025-10-26T00:00:00Z 2025-10-26T01:00:00Z 2025-10-26T02:00:00Z"},
		{"*-*-* 02:30", "Europe/Berlin", "2025-10-26T00:45:00Z", "2025-10-27T01:30:00Z"},
		{"*-*-* 03:00", "Europe/Berlin", "2025-10-26T00:45:00Z", "2025-10-26T02:00:00Z"},
		// Put forward at 02:00 CET: 02:30 does not come.
		{"*-*-* 02:30", "Europe/Berlin", "2025-03-29T12:00:00Z", "2025-03-31T00:30:00Z"},
		{"*:30", "Europe/Berlin", "2025-03-30T00:00:00Z", "2025-03-30T00:30:00Z 2025-03-30T01:30:00Z"},
		// Half an hour.
		{"*-*-* 01:45", "Australia/Lord_Howe", "2025-04-05T00:00:00Z", "2025-04-05T14:45:00Z 2025-04-06T15:15:00Z"},
		{"*-*~01", "UTC", "2024-02-01T00:00:00Z", "2024-02-29T00:00:00Z 2024-03-31T00:00:00Z"},
		{"*-*~03/1", "UTC", "2024-02-01T00:00:00Z", "2024-02-27T00:00:00Z 2024-02-28T00:00:00Z 2024-02-29T00:00:00Z 2024-03-29T00:00:00Z"},
		{"2099-12-31 23:59:59", "Europe/Berlin", "2025-01-01T00:00:00Z", "2099-12-31T22:59:59Z never"},
		{"Mon 02-29", "UTC", "2025-01-01T00:00:00Z", "2044-02-29T00:00:00Z"},
	} {
		e, err := Parse(c.expression)
		if err != nil {
			t.Fatal(err)
		}
		loc, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339, c.after)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range strings.Fields(c.want) {
			next, ok := e.Next(at, loc)
			got := next.UTC().Format(time.RFC3339Nano)
			if !ok {
				got = "never"
			}
			if got != want {
				t.Errorf("%q in %s after %s elapses at %s, want %s", c.expression, c.zone, at.Format(time.RFC3339Nano), got, want)
			}
			at = next
		}
	}
}

func TestTimestamps(t *testing.T) {
	for _, r := range rows(t, "timestamp-format.tsv") {
		n := number(t, r[2])
		switch r[1] {
		case "format_timestamp_utc":
			got, ok := FormatUTC(n)
			if ok != (r[3] != "null") || ok && got != text(t, r[3]) {
				t.Errorf("%s: %d is printed as %q, %v, want %s", r[0], n, got, ok, r[3])
			}
		case "format_timestamp_relative":
			if got := FormatRelative(n); got != text(t, r[3]) {
				t.Errorf("%s: %d is printed as %q, want %s", r[0], n, got, r[3])
			}
		default:
			t.Errorf("%s: unknown function %s", r[0], r[1])
		}
	}
}

func TestZones(t *testing.T) {
	for _, r := range rows(t, "timezone-valid.tsv") {
		name := text(t, r[2])
		_, err := LoadZone(name)
		want := r[3] == "ok" || r[3] == "true"
		if (err == nil) != want {
			t.Errorf("%s: zone %q: %v, want %s", r[0], name, err, r[3])
		}
		if r[3] == "error:EINVAL" && ValidZoneName(name) {
			t.Errorf("%s: %q is taken for the name of a zone", r[0], name)
		}
	}
}

func FuzzCalendar(f *testing.F) {
	for _, r := range rows(f, "calendar-normalize.tsv") {
		f.Add(text(f, r[1]), int64(0))
	}
	for _, r := range rows(f, "calendar-next.tsv") {
		f.Add(text(f, r[1]), int64(1459048620000000))
	}
	for _, r := range rows(f, "calendar-invalid.tsv") {
		f.Add(text(f, r[1]), int64(1))
	}
	loc, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string, at int64) {
		e, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(e.String())
		if err != nil || again.String() != e.String() {
			t.Fatalf("%q is printed as %q, which reads back as %v, %v", s, e, again, err)
		}
		// Years from 1970 to 2100.
		from := time.UnixMicro(at % 4_102_444_800_000_000)
		next, ok := e.Next(from, loc)
		other, ok2 := again.Next(from, loc)
		if ok != ok2 || !next.Equal(other) {
			t.Errorf("%q elapses at %v, %v; printed as %q at %v, %v", s, next, ok, e, other, ok2)
		}
		if !ok {
			return
		}
		if !next.After(from) {
			t.Errorf("%q after %v elapses at %v", s, from, next)
		}
		// It elapses where it says, and nowhere between.
		if found, ok := e.Next(next.Add(-time.Microsecond), loc); !ok || !found.Equal(next) {
			t.Errorf("%q: just before %v the next is %v, %v", s, next, found, ok)
		}
		middle := from.Add(next.Sub(from) / 2).Truncate(time.Microsecond)
		if found, ok := e.Next(middle, loc); middle.Before(next) && (!ok || !found.Equal(next)) {
			t.Errorf("%q: after %v it elapses at %v, after %v at %v", s, from, next, middle, found)
		}
	})
}
