package unitfile

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"legion.dev/legion/internal/calendar"
)

// table reads a table of testdata: a header line, then cells between tabs.
func table(t testing.TB, name string) []map[string]string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name + ".tsv")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	head := strings.Split(lines[0], "\t")
	var out []map[string]string
	for _, line := range lines[1:] {
		row := map[string]string{}
		for i, cell := range strings.Split(line, "\t") {
			row[head[i]] = cell
		}
		out = append(out, row)
	}
	if len(out) == 0 {
		t.Fatalf("%s is empty", name)
	}
	return out
}

// long reads a string, or a concatenation of strings and repeated parts.
func long(t testing.TB, cell string) string {
	t.Helper()
	if h, ok := strings.CutPrefix(cell, "hex:"); ok {
		b, err := hex.DecodeString(h)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var v any
	if err := json.Unmarshal([]byte(cell), &v); err != nil {
		t.Fatalf("%s: %v", cell, err)
	}
	return join1(t, v)
}

func join1(t testing.TB, v any) string {
	switch v := v.(type) {
	case string:
		if strings.HasPrefix(v, "hex:") {
			return long(t, v)
		}
		return v
	case []any:
		if n, ok := v[len(v)-1].(float64); ok && len(v) == 2 {
			return strings.Repeat(join1(t, v[0]), int(n))
		}
		var b strings.Builder
		for _, e := range v {
			b.WriteString(join1(t, e))
		}
		return b.String()
	}
	return ""
}

func decode[T any](t testing.TB, cell string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(cell), &v); err != nil {
		t.Fatalf("%s: %v", cell, err)
	}
	return v
}

// failed compares an error with a cell such as "error:EINVAL".
func failed(cell string, err error) bool {
	switch cell {
	case "error:ERANGE":
		return errors.Is(err, ErrRange) || errors.Is(err, calendar.ErrRange)
	case "error:EILSEQ":
		return errors.Is(err, ErrOrder)
	default:
		return err != nil
	}
}

var wordFlags = map[string]WordFlags{
	"RELAX": Relax, "CUNESCAPE": CUnescape, "UNESCAPE_RELAX": UnescapeRelax, "UNESCAPE_SEPARATORS": UnescapeSeparators,
	"KEEP_QUOTE": KeepQuote, "UNQUOTE": Unquote, "DONT_COALESCE_SEPARATORS": DontCoalesce,
	"RETAIN_ESCAPE": RetainEscape, "RETAIN_SEPARATORS": RetainSeparators,
}

type wordStep struct {
	Sep   *string
	Flags []string
	Word  *string
	Error string
	End   bool
	Rest  json.RawMessage
	Slots int
	Words []*string
	Count int

	RestStartsWith string `json:"rest_starts_with"`
}

func TestWords(t *testing.T) {
	for _, row := range table(t, "extract-word") {
		ws := Words{Rest: long(t, row["input"])}
		for i, step := range decode[[]wordStep](t, row["steps"]) {
			var flags WordFlags
			for _, f := range step.Flags {
				flags |= wordFlags[f]
			}
			sep := ""
			if step.Sep != nil {
				sep = *step.Sep
			}
			next := ws.Next
			if row["function"] == "extract_first_word_and_warn" {
				next = ws.NextUnit
			}
			if step.Slots > 0 {
				for slot := range step.Slots {
					got, ok, err := next(sep, flags)
					want := step.Words[slot]
					if err != nil || ok != (want != nil) || ok && got != *want {
						t.Errorf("%s: step %d slot %d: %q %v %v", row["source"], i, slot, got, ok, err)
					}
				}
			} else {
				got, ok, err := next(sep, flags)
				switch {
				case step.Error != "":
					if err == nil {
						t.Errorf("%s: step %d: got %q, want an error", row["source"], i, got)
					}
				case err != nil, ok == step.End, step.Word != nil && got != *step.Word:
					t.Errorf("%s: step %d: %q %v %v, want %+v", row["source"], i, got, ok, err, step)
				}
			}
			var rest *string
			if len(step.Rest) > 0 {
				rest = decode[*string](t, string(step.Rest))
				if rest == nil {
					rest = new(string)
				}
			}
			if rest != nil && ws.Rest != *rest || !strings.HasPrefix(ws.Rest, step.RestStartsWith) {
				t.Errorf("%s: step %d leaves %q, want %s", row["source"], i, ws.Rest, step.Rest)
			}
		}
	}
}

func same(s string) (string, error) { return s, nil }

func TestExec(t *testing.T) {
	type command struct {
		Path string
		Argv []any
		Ign  bool `json:"ignore_failure"`
	}
	for _, row := range table(t, "exec") {
		value := strings.Trim(long(t, row["input"]), blank)
		if row["result"] == "reset" {
			if value != "" {
				t.Errorf("%s: %q is not empty", row["source"], value)
			}
			continue
		}
		cmds, err := ParseExec(value, Options{}.expandFor("foobar.service"))
		if strings.HasPrefix(row["result"], "error") != (err != nil) {
			t.Errorf("%s: %.60q: %v, want %s", row["source"], value, err, row["result"])
			continue
		}
		want := decode[[]command](t, row["commands"])
		if len(cmds) != len(want) {
			t.Errorf("%s: %.60q: %d commands, want %d", row["source"], value, len(cmds), len(want))
			continue
		}
		for i, w := range want {
			var argv []string
			for _, a := range w.Argv {
				argv = append(argv, join1(t, a))
			}
			if cmds[i].Path != w.Path || cmds[i].IgnoreFailure != w.Ign || !reflect.DeepEqual(cmds[i].Argv, argv) {
				t.Errorf("%s: %.60q: %.200s, want %.200s", row["source"], value, fmt.Sprint(cmds[i]), fmt.Sprint(w))
			}
		}
	}
}

func (o Options) expandFor(unit string) func(string) (string, error) {
	return func(s string) (string, error) { return o.Expand(unit, "", s) }
}

func TestEnvironmentFile(t *testing.T) {
	for _, row := range table(t, "env-file") {
		if row["function"] != "load_env_file" {
			continue // Legion writes none
		}
		got, err := ParseEnvironmentFile([]byte(long(t, row["content"])))
		if strings.HasPrefix(row["result"], "error") {
			if err == nil {
				t.Errorf("%s: no error", row["source"])
			}
			continue
		}
		want := decode[[]string](t, row["result"])
		if err != nil || len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %q, want %q (%v)", row["source"], got, want, err)
		}
	}
}

func TestConfParser(t *testing.T) {
	for _, row := range table(t, "conf-parser") {
		f, err := Parse("x", []byte(long(t, row["content"])))
		if strings.HasPrefix(row["result"], "error") {
			if err == nil {
				t.Errorf("%s: no error", row["source"])
			}
			continue
		}
		got := ""
		if err == nil {
			for _, e := range f.Entries {
				if e.Section == "Section" && e.Key == "setting1" {
					got = e.Value
				}
			}
		}
		if want := long(t, row["result"]); err != nil || got != want {
			t.Errorf("%s: %.80q, want %.80q (%v)", row["source"], got, want, err)
		}
	}
}
