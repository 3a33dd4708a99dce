package unitfile

import (
	"encoding/json"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"legion.dev/legion/internal/service"
)

func TestSize(t *testing.T) {
	for _, row := range table(t, "size") {
		base, _ := strconv.ParseUint(row["base"], 10, 64)
		got, err := ParseSize(long(t, row["input"]), base)
		check(t, row, got, err)
	}
}

// check compares a number with the cell "result".
func check(t *testing.T, row map[string]string, got uint64, err error) {
	t.Helper()
	want := row["result"]
	if strings.HasPrefix(want, "error") {
		if !failed(want, err) {
			t.Errorf("%s: %s: %d, %v, want %s", row["source"], row["input"], got, err, want)
		}
		return
	}
	n, perr := strconv.ParseInt(want, 0, 64)
	if perr != nil {
		u, uerr := strconv.ParseUint(want, 0, 64)
		if uerr != nil {
			t.Fatal(uerr)
		}
		n = int64(u)
	}
	if err != nil || got != uint64(n) {
		t.Errorf("%s: %s: %d, %v, want %s", row["source"], row["input"], int64(got), err, want)
	}
}

func TestNumbers(t *testing.T) {
	tested := 0
	for _, row := range table(t, "numbers") {
		input := long(t, row["input"])
		signed := func(bits int) {
			n, err := ParseInt(input, bits)
			check(t, row, uint64(n), err)
		}
		tested++
		switch row["function"] {
		case "parse_boolean":
			v, err := ParseBool(input)
			if strings.HasPrefix(row["result"], "error") != (err != nil) || strconv.FormatBool(v) != row["result"] && err == nil {
				t.Errorf("%s: %s: %v %v", row["source"], input, v, err)
			}
		case "parse_mode":
			n, err := ParseMode(input)
			check(t, row, uint64(n), err)
		case "parse_nice":
			n, err := ParseNice(input)
			check(t, row, uint64(n), err)
		case "safe_atolli", "safe_atoi64":
			signed(64)
		case "safe_atoi16":
			signed(16)
		case "safe_atou16":
			n, err := ParseUint(input, 16)
			check(t, row, n, err)
		case "safe_atou64":
			n, err := ParseUint(input, 64)
			check(t, row, n, err)
		default:
			tested--
		}
	}
	if tested < 50 {
		t.Errorf("only %d lines tested", tested)
	}
}

func TestSignal(t *testing.T) {
	for _, row := range table(t, "signal") {
		if row["function"] != "signal_from_string" {
			name := row["input"]
			n, err := ParseSignal(name)
			short, err2 := ParseSignal(strings.TrimPrefix(name, "SIG"))
			if err != nil || err2 != nil || n != short || SignalName(n) != row["result"] {
				t.Errorf("%s: %s: %d %d %v %v", row["source"], name, n, short, err, err2)
			}
			continue
		}
		n, err := ParseSignal(long(t, row["input"]))
		if strings.HasPrefix(row["result"], "error") {
			if !failed(row["result"], err) {
				t.Errorf("%s: %s: %d %v, want %s", row["source"], row["input"], n, err, row["result"])
			}
		} else if err != nil || SignalName(n) != row["result"] && strconv.Itoa(n) != row["result"] {
			t.Errorf("%s: %s: %s %v, want %s", row["source"], row["input"], SignalName(n), err, row["result"])
		}
	}
}

func TestRlimit(t *testing.T) {
	for _, row := range table(t, "rlimit") {
		l, err := ParseRlimit(row["resource"], long(t, row["input"]))
		if want := row["soft"]; strings.HasPrefix(want, "error") {
			if !failed(want, err) {
				t.Errorf("%s: %s: %v %v, want %s", row["source"], row["input"], l, err, want)
			}
			continue
		}
		if err != nil || l.Soft != limitCell(t, row["soft"]) || l.Hard != limitCell(t, row["hard"]) {
			t.Errorf("%s: %s: %v %v", row["source"], row["input"], l, err)
		}
	}
	for _, row := range table(t, "rlimit-name") {
		input := long(t, row["input"])
		name, err := RlimitName(input)
		if row["function"] == "rlimit_from_string" && rlimits[input] == nil {
			name, err = "", ErrInvalid // the strict variant: the name alone
		}
		if strings.HasPrefix(row["result"], "error") != (err != nil) || err == nil && name != row["result"] {
			t.Errorf("%s: %s: %q %v", row["source"], input, name, err)
		}
	}
}

func limitCell(t *testing.T, cell string) uint64 {
	if strings.Trim(cell, `"`) == "infinity" {
		return math.MaxUint64
	}
	n, err := strconv.ParseUint(cell, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// compileLines compiles a service of one command with lines of its section.
func compileLines(t testing.TB, lines ...string) service.Group {
	t.Helper()
	f, err := Parse("/u/foobar.service", []byte("[Service]\nExecStart=/bin/true\n"+strings.Join(lines, "\n")+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := Compile("foobar.service", f, nil, Options{Root: true})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestDirectiveValues(t *testing.T) {
	for _, row := range table(t, "directive-values") {
		d := row["directive"]
		input := d + "=" + long(t, row["input"])
		list := func(cell string) []string { return decode[[]string](t, cell) }
		var got, want []string
		switch d {
		case "EnvironmentFile", "PassEnvironment", "CapabilityBoundingSet":
			var lines []string
			for _, b := range list(row["before"]) {
				lines = append(lines, d+"="+b)
			}
			if d == "CapabilityBoundingSet" && len(lines) == 0 {
				lines = []string{d + "="} // the empty set, not the unset one
			}
			x := compileLines(t, append(lines, input)...).Services[0].Exec
			switch d {
			case "EnvironmentFile":
				for _, f := range x.EnvironmentFiles {
					got = append(got, f.Path)
				}
			case "PassEnvironment":
				got = x.PassEnvironment
			default:
				got = *x.CapabilityBoundingSet
			}
			if row["after"] == `"all"` {
				want = Capabilities
			} else {
				want = list(row["after"])
				want = sortCapabilities(d, want)
			}
		case "LimitNOFILE", "LimitCPU", "LimitRTTIME":
			var lines []string
			if row["before"] != "null" {
				lines = append(lines, d+"="+limitText(t, row["before"], d))
			}
			l, ok := compileLines(t, append(lines, input)...).Services[0].Exec.Rlimits[strings.TrimPrefix(d, "Limit")]
			if ok {
				got = []string{strconv.FormatUint(l.Soft, 10), strconv.FormatUint(l.Hard, 10)}
			}
			if row["after"] != "null" {
				m := decode[map[string]json.RawMessage](t, row["after"])
				want = []string{
					strconv.FormatUint(limitCell(t, string(m["soft"])), 10),
					strconv.FormatUint(limitCell(t, string(m["hard"])), 10),
				}
			}
		default:
			continue // cgroup limits and log fields are not honoured yet
		}
		if len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s on %s: %q, want %q", row["source"], input, row["before"], got, want)
		}
	}
}

func sortCapabilities(directive string, names []string) []string {
	if directive != "CapabilityBoundingSet" {
		return names
	}
	var out []string
	for _, c := range Capabilities {
		for _, n := range names {
			if n == c {
				out = append(out, n)
			}
		}
	}
	return out
}

func limitText(t *testing.T, cell, directive string) string {
	m := decode[map[string]json.RawMessage](t, cell)
	unit := map[string]string{"LimitRTTIME": "us", "LimitCPU": "s"}[directive]
	text := func(c json.RawMessage) string {
		if s := strings.Trim(string(c), `"`); s == "infinity" {
			return s
		}
		return string(c) + unit
	}
	return text(m["soft"]) + ":" + text(m["hard"])
}
