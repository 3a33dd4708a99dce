package envfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/kubernetes/pkg/kubelet/util/env"
)

const sample = `# of the init container

  PLAIN='a b'
LATER='$(PLAIN) "x" \n' # as it stands
LINES='one
two # no comment
three'
BLANK= 'x'
EMPTY=''
PLAIN='again'
CR='x'
`

func TestValue(t *testing.T) {
	text := strings.Replace(sample, "CR='x'", "CR='x'\r", 1)
	for name, want := range map[string]string{
		"PLAIN": "a b", "LATER": `$(PLAIN) "x" \n`, "LINES": "one\ntwo # no comment\nthree", "BLANK": "", "EMPTY": "", "CR": "x", "NOBODY": "",
	} {
		got, ok, err := Value(text, name)
		if got != want || ok != (want != "") || err != nil {
			t.Errorf("%s is %q, %v, %v, want %q", name, got, ok, err, want)
		}
	}
	for text, want := range map[string]string{
		"A='1'\nB\nC='3'": "line 2: there is no = in it", "='x'": "line 1: there is no name before the =", "A ='x'": "line 1: there is a blank before the =",
		"A=x": "line 1: the value is not in single quotes", "A=": "line 1: the value is not in single quotes", "\n\nA='x\ny\n": "line 3: the quote is not closed",
		"A='x'y": "line 1: something stands behind the value", "C='\x00'": "line 1: a value cannot hold a zero byte",
	} {
		if got, ok, err := Value(text, "C"); err == nil || err.Error() != want || ok {
			t.Errorf("%q: %q, %v, want %s", text, got, err, want)
		}
	}
}

// FuzzValue: it reads every file as the kubelet does.
func FuzzValue(f *testing.F) {
	for _, s := range []string{sample, "A='x\ny\n", "A=", "A= ", " \t\n#x\nA='1' \t# y\nB\t='2'", "A='\n'", "='", "A='x'\r\nB='\r\ny'\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "\x00") || len(text) > 4096 {
			t.Skip()
		}
		path := filepath.Join(t.TempDir(), "env")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"A", "B", "PLAIN", "LINES"} {
			want, wantErr := env.ParseEnv(path, name)
			got, ok, err := Value(text, name)
			if (err != nil) != (wantErr != nil) || got != want || ok != (want != "") {
				t.Fatalf("%s of %q is %q, %v; the kubelet has %q, %v", name, text, got, err, want, wantErr)
			}
		}
	})
}
