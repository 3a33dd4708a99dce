package pods

import (
	"os/exec"
	"regexp"

	"github.com/rogpeppe/go-internal/testscript"
)

var debugger = regexp.MustCompile(`Creating debugging pod (\S+) with container debugger on node ` + node + `\.`)

// debug has kubectl, the machine's where it has one, make a pod that looks at
// the node, and puts the pod's name into a variable: debug VARIABLE ARGUMENT…
func debug(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: debug VARIABLE ARGUMENT…")
	}
	s := of(ts)
	program, words := "legion", []string{"kubectl"}
	if path, err := exec.LookPath("kubectl"); err == nil {
		program, words = path, nil
	}
	out, err := s.fleet.program("", program, append(append(words, "-n", s.namespace, "debug", "node/"+node), args[1:]...)...)
	if err != nil {
		ts.Fatalf("%v\n%s", err, out)
	}
	found := debugger.FindStringSubmatch(out)
	if found == nil {
		ts.Fatalf("it names no pod:\n%s", out)
	}
	ts.Setenv(args[0], found[1])
}
