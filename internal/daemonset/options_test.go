package daemonset

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestOptionsText reads testdata/options.txt: what each value becomes, and how
// wrong ones are refused.
func TestOptionsText(t *testing.T) {
	golden(t, "testdata/options.txt", func(name, input string) string {
		annotations := map[string]string{}
		for line := range strings.Lines(input) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
			annotations[OptionPrefix+key] = strings.TrimSuffix(value, `""`)
		}
		o, wrong := ParseOptions(annotations)
		if len(wrong) > 0 {
			s := ""
			for _, w := range wrong {
				s += "wrong: " + w.String() + "\n"
			}
			return s
		}
		return o.String() + "\n"
	})
}

// golden runs the cases of a txtar file: each is a pair of files, NAME and
// "NAME: becomes". LEGION_REWRITE=1 writes what came out.
func golden(t *testing.T, file string, run func(name, input string) string) {
	t.Helper()
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := &txtar.Archive{Comment: a.Comment}
	changed := false
	for i := 0; i < len(a.Files); i++ {
		in := a.Files[i]
		want := ""
		if i+1 < len(a.Files) && a.Files[i+1].Name == in.Name+": becomes" {
			i++
			want = string(a.Files[i].Data)
		}
		t.Run(in.Name, func(t *testing.T) {
			got := run(in.Name, string(in.Data))
			if got != want {
				changed = true
				if os.Getenv("LEGION_REWRITE") == "" {
					t.Errorf("got\n%s\nwant\n%s", got, want)
				}
			}
			out.Files = append(out.Files, in, txtar.File{Name: in.Name + ": becomes", Data: []byte(got)})
		})
	}
	if changed && os.Getenv("LEGION_REWRITE") != "" {
		if err := os.WriteFile(file, txtar.Format(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func FuzzOptions(f *testing.F) {
	f.Add("partition", "10%")
	f.Add("canary", "a in (b, c)")
	f.Add("bake", "-5m")
	f.Fuzz(func(t *testing.T, key, value string) {
		o, wrong := ParseOptions(map[string]string{OptionPrefix + key: value})
		if len(wrong) > 0 {
			if wrong[0].Want == "" {
				t.Error("refused without a word")
			}
			return
		}
		if n, err := scaled(o.Partition, 100); err != nil || n < 0 || o.Bake < 0 || o.Deadline < 0 {
			t.Errorf("%s=%q became %+v", key, value, o)
		}
	})
}

func TestNoOptions(t *testing.T) {
	o, wrong := ParseOptions(map[string]string{"other.example/paused": "yes"})
	if len(wrong) > 0 || o != (Options{}) {
		t.Errorf("%+v %v", o, wrong)
	}
	if o.Partition != (intstr.IntOrString{}) || o.Bake != time.Duration(0) {
		t.Error(fmt.Sprint(o))
	}
}
