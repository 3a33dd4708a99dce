package calendar

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
)

// rows reads a table of testdata: one header line, cells between tabs.
func rows(t testing.TB, name string) [][]string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out [][]string
	for _, line := range strings.Split(strings.TrimRight(string(data), "\n"), "\n")[1:] {
		out = append(out, strings.Split(line, "\t"))
	}
	return out
}

func number(t *testing.T, s string) uint64 {
	t.Helper()
	if s == "infinity" {
		return Infinity
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func text(t testing.TB, cell string) string {
	t.Helper()
	s, err := strconv.Unquote(cell)
	if err != nil {
		t.Fatalf("%s: %v", cell, err)
	}
	return s
}

func TestTimespan(t *testing.T) {
	units := map[string]uint64{"s": Second, "ms": Millisecond, "us": Microsecond, "ns": 1, "-": Second}
	for _, r := range rows(t, "timespan.tsv") {
		source, function, input, unit, want := r[0], r[1], text(t, r[2]), units[r[3]], r[5]
		if function == "parse_sec_def_infinity" && strings.TrimSpace(input) == "" {
			continue // a default of its caller's
		}
		var got uint64
		var err error
		if function == "parse_nsec" {
			got, err = ParseNsec(input, unit)
		} else {
			got, err = ParseUsec(input, unit)
		}
		if function == "parse_sec_fix_0" && got == 0 && err == nil {
			got = Infinity
		}
		switch {
		case strings.HasPrefix(want, "error"):
			if err == nil {
				t.Errorf("%s: %s(%q) = %d, want %s", source, function, input, got, want)
			}
			if want == "error:ERANGE" && !errors.Is(err, ErrRange) {
				t.Errorf("%s: %s(%q): %v, want a range error", source, function, input, err)
			}
		case err != nil:
			t.Errorf("%s: %s(%q): %v", source, function, input, err)
		case want != "ok" && got != number(t, want):
			t.Errorf("%s: %s(%q) = %d, want %s", source, function, input, got, want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	for _, r := range rows(t, "timespan-roundtrip.tsv") {
		usec, accuracy := number(t, r[1]), number(t, r[2])
		printed := Format(usec, accuracy)
		back, err := ParseUsec(printed, Second)
		if err != nil || back/accuracy != usec/accuracy {
			t.Errorf("%s: %d printed as %q reads back as %d, %v", r[0], usec, printed, back, err)
		}
	}
}

func FuzzTimespan(f *testing.F) {
	for _, r := range rows(f, "timespan.tsv") {
		f.Add(text(f, r[2]))
	}
	f.Fuzz(func(t *testing.T, s string) {
		usec, err := ParseUsec(s, Second)
		if err != nil {
			return
		}
		back, err := ParseUsec(Format(usec, 1), Second)
		if err != nil || back != usec {
			t.Errorf("%q: %d printed as %q reads back as %d, %v", s, usec, Format(usec, 1), back, err)
		}
	})
}
