package unitfile

import (
	"strconv"
	"strings"
	"testing"
)

func TestUnitNameValid(t *testing.T) {
	for _, row := range table(t, "unit-name-valid") {
		input := long(t, row["input"])
		var got bool
		switch row["function"] {
		case "unit_name_is_valid":
			var kinds NameKind
			for _, k := range strings.Split(row["flags"], "|") {
				kinds |= map[string]NameKind{"ANY": AnyName, "PLAIN": Plain, "INSTANCE": Instance, "TEMPLATE": Template}[k]
			}
			got = ValidName(input, kinds)
		case "unit_instance_is_valid":
			got = ValidInstance(input)
		case "unit_prefix_is_valid":
			got = ValidPrefix(input)
		default:
			continue // slices and hashed names, which Legion does not make
		}
		if strconv.FormatBool(got) != row["valid"] {
			t.Errorf("%s: %s(%q, %s) = %v", row["source"], row["function"], input, row["flags"], got)
		}
	}
}

func TestUnitName(t *testing.T) {
	tested := 0
	for _, row := range table(t, "unit-name") {
		var args []string
		for _, a := range decode[[]*string](t, row["args"]) {
			if a == nil {
				args = append(args, "\x00")
				continue
			}
			args = append(args, *a)
		}
		got, err, ok := callName(row["function"], args)
		if !ok || len(args[0]) > 200 { // long paths get a hashed name in systemd
			continue
		}
		tested++
		if row["result"] == "null" {
			if err == nil {
				t.Errorf("%s: %s%q = %q, want an error", row["source"], row["function"], args, got)
			}
		} else if err != nil || got != long(t, row["result"]) {
			t.Errorf("%s: %s%q = %q %v, want %s", row["source"], row["function"], args, got, err, row["result"])
		}
	}
	if tested < 25 {
		t.Errorf("only %d lines tested", tested)
	}
}

func callName(function string, args []string) (string, error, bool) {
	var got string
	var err error
	switch function {
	case "unit_name_replace_instance":
		got, err = ReplaceInstance(args[0], args[1])
	case "unit_name_from_path":
		got, err = NameFromPath(args[0], args[1])
	case "unit_name_from_path_instance":
		if got, err = EscapePath(args[1]); err == nil {
			got, err = BuildName(args[0], got, true, args[2])
		}
	case "unit_name_to_path":
		got, err = NameToPath(args[0])
	case "unit_name_mangle":
		got, err = Mangle(args[0], args[1] == "GLOB")
	case "unit_name_template":
		got, err = TemplateOf(args[0])
	case "unit_name_path_unescape":
		got, err = UnescapePath(args[0])
	case "unit_name_to_prefix":
		prefix, _, _, kind := ParseName(args[0])
		if got = prefix; kind == 0 {
			err = ErrInvalid
		}
	case "unit_name_change_suffix":
		got, err = ChangeSuffix(args[0], args[1])
	case "unit_name_build":
		got, err = BuildName(args[0], strings.TrimPrefix(args[1], "\x00"), args[1] != "\x00", args[2])
	case "unit_name_to_instance":
		_, instance, _, kind := ParseName(args[0])
		if got = instance; kind == 0 {
			err = ErrInvalid
		}
	default:
		return "", nil, false
	}
	return got, err, true
}

func TestSpecifier(t *testing.T) {
	type context struct {
		Unit      string
		Scope     string
		OSRelease string `json:"os_release"`
		Cgroup    string `json:"cgroup_root"`
		Table     any
	}
	tested := 0
	for _, row := range table(t, "specifier") {
		switch row["function"] {
		case "specifier_escape":
			if row["input"] != "null" && EscapeSpecifiers(long(t, row["input"])) != long(t, row["result"]) {
				t.Errorf("%s: %s", row["source"], row["input"])
			}
			continue
		case "unit_full_printf", "install_name_printf", "specifier_printf":
		default:
			continue
		}
		ctx := decode[context](t, row["context"])
		if ctx.Cgroup != "" && strings.ContainsAny(row["input"], "crR") || ctx.Table != nil || ctx.Scope == "global" {
			continue // Legion's cgroups have other names, and one scope
		}
		o := Options{Root: true}.WithDefaults()
		got, err := o.Expand(ctx.Unit, "", long(t, row["input"]))
		tested++
		switch {
		case strings.HasPrefix(row["result"], "error"):
			if err == nil {
				t.Errorf("%s: %s: no error", row["source"], row["input"])
			}
		case strings.HasPrefix(row["result"], "{"):
			tail := strings.TrimPrefix(decode[map[string]string](t, row["result"])["glob"], "*")
			if err != nil || !strings.HasSuffix(got, tail) {
				t.Errorf("%s: %s: %q %v, want …%s", row["source"], row["input"], got, err, tail)
			}
		default:
			if err != nil || got != long(t, row["result"]) {
				t.Errorf("%s: %s of %s: %q %v, want %s", row["source"], row["input"], ctx.Unit, got, err, row["result"])
			}
		}
	}
	if tested < 20 {
		t.Errorf("only %d lines tested", tested)
	}
}
