package unitfile

import (
	"slices"
	"testing"

	"legion.dev/legion/internal/service"
)

func TestInput(t *testing.T) {
	for content, want := range map[string]service.ExecContext{
		"StandardInputText=one\\ttwo \\q %i\nStandardInputText=\\x41":                                        {StandardInput: "data", InputData: []byte("one\ttwo \\q x\nA\n")},
		"StandardInputText=gone\nStandardInputData=\nStandardInputData=aGVs \\\n  bG8=\nStandardInputText=!": {StandardInput: "data", InputData: []byte("hello!\n")},
		"StandardInput=null\nStandardInputText=x":                                                            {StandardInput: "null", InputData: []byte("x\n")},
		"StandardInput=data":                        {StandardInput: "data"},
		"StandardInput=data\nStandardInputData=???": {StandardInput: "data"},
		"ExecSearchPath=/gone\nExecSearchPath=\nExecSearchPath=/a:/b/\nExecSearchPath=/%p": {SearchPath: []string{"/a", "/b", "/a"}},
		"ExecSearchPath=/a:b": {},
	} {
		g, err := compile(t, "a@x.service", "[Service]\nExecStart=/bin/a\n"+content+"\n")
		if err != nil {
			t.Fatal(err)
		}
		x := g.Services[0].Exec
		if x.StandardInput != want.StandardInput || string(x.InputData) != string(want.InputData) || !slices.Equal(x.SearchPath, want.SearchPath) {
			t.Errorf("%q: %q, %q, %q", content, x.StandardInput, x.InputData, x.SearchPath)
		}
	}
}
