package pods

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"legion.dev/legion/test/standin/standinimage"
)

// apply makes objects of files: apply FILE…
func apply(ts *testscript.TestScript, neg bool, args []string) {
	for _, file := range args {
		err := of(ts).apply(context.Background(), ts.ReadFile(file))
		if (err != nil) != neg {
			ts.Fatalf("%s: %v", file, err)
		}
		if neg {
			ts.Logf("%v", err)
		}
	}
}

// until waits until all patterns match lines of one state of a pod:
// until POD PATTERN…
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until POD PATTERN…")
	}
	s := of(ts)
	_, err := s.await(args[0], func(p *corev1.Pod) (bool, error) {
		if p == nil {
			return false, fmt.Errorf("pod %s is gone", args[0])
		}
		missing, err := match(lines(p), s.words(args[1:]))
		return len(missing) == 0, err
	})
	if err != nil {
		ts.Fatalf("%v; %s", err, s.report(args[0]))
	}
}

// words are patterns with the script's own values in them.
func (s *script) words(patterns []string) []string {
	var out []string
	for _, p := range patterns {
		out = append(out, s.replace.Replace(p))
	}
	return out
}

// gone waits until a pod is gone, and looks at what was seen of it last:
// gone POD PATTERN…
func gone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: gone POD PATTERN…")
	}
	s := of(ts)
	if _, err := s.await(args[0], func(p *corev1.Pod) (bool, error) { return p == nil, nil }); err != nil {
		ts.Fatalf("%v; %s", err, s.report(args[0]))
	}
	missing, err := match(lines(s.last(args[0])), s.words(args[1:]))
	ts.Check(err)
	if len(missing) > 0 {
		ts.Fatalf("%q: %s", missing, s.report(args[0]))
	}
}

// now looks at the newest state of a pod: now POD PATTERN…
func now(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: now POD PATTERN…")
	}
	s := of(ts)
	p := s.last(args[0])
	if p == nil {
		ts.Fatalf("nothing was seen of pod %s", args[0])
	}
	missing, err := match(lines(p), s.words(args[1:]))
	ts.Check(err)
	if neg && len(missing) < len(args)-1 || !neg && len(missing) > 0 {
		ts.Fatalf("%q: %s", missing, s.report(args[0]))
	}
}

// condition sets a condition of a pod, as another controller would:
// condition POD TYPE STATUS
func condition(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: condition POD TYPE STATUS")
	}
	s := of(ts)
	patch := fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":%q}]}}`, args[1], args[2])
	_, err := s.fleet.api.CoreV1().Pods(s.namespace).Patch(context.Background(), args[0], types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	ts.Check(err)
}

// readLog waits until all patterns match lines of a container's log, or with !
// sees to it that none does of what it has said so far:
// log POD[/CONTAINER][@previous] PATTERN…
func readLog(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: log POD[/CONTAINER][@previous] PATTERN…")
	}
	s := of(ts)
	name, previous := strings.CutSuffix(args[0], "@previous")
	pod, container, _ := strings.Cut(name, "/")
	enough := func(have []string) bool {
		missing, err := match(have, s.words(args[1:]))
		return err != nil || len(missing) == 0
	}
	if neg || previous {
		enough = nil
	}
	have, err := s.log(context.Background(), pod, container, previous, enough)
	if err != nil && len(have) == 0 {
		ts.Fatalf("%v; %s", err, s.report(pod))
	}
	missing, err := match(have, s.words(args[1:]))
	ts.Check(err)
	switch {
	case neg && len(missing) < len(args)-1:
		ts.Fatalf("it has said one of %q:\n\t%s", args[1:], strings.Join(have, "\n\t"))
	case !neg && len(missing) > 0:
		ts.Fatalf("it has not said %q:\n\t%s\n%s", missing, strings.Join(have, "\n\t"), s.report(pod))
	}
}

// event waits for an event of a pod: event POD REASON PATTERN
func event(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: event POD REASON PATTERN")
	}
	s := of(ts)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w, err := s.fleet.api.CoreV1().Events(s.namespace).Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("involvedObject.name", args[0]).String()})
	ts.Check(err)
	defer w.Stop()
	want, err := regexp.Compile(s.replace.Replace(args[2]))
	ts.Check(err)
	var seen []string
	for ev := range w.ResultChan() {
		if e, ok := ev.Object.(*corev1.Event); ok {
			if e.Reason == args[1] && want.MatchString(e.Message) {
				return
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
	}
	ts.Fatalf("no such event; there were %q; %s", seen, s.report(args[0]))
}

// push puts an image of files into the registry that wants a login, in place of
// the one that had the name; what it says is in the file "version":
// push NAME VERSION
func push(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: push NAME VERSION")
	}
	img, err := standinimage.Files(
		map[string]string{"version": "none", "sub/file": "of " + args[1], "old": "of the lower layer", "bin/program": "#!/no/such/program\n"},
		map[string]string{"version": args[1], ".wh.old": ""})
	ts.Check(err)
	ts.Check(of(ts).fleet.registry.put(privateHost+"/"+args[0], img))
}

// remove deletes a pod and does not wait: delete POD [GRACE]
func remove(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: delete POD [GRACE]")
	}
	s, options := of(ts), metav1.DeleteOptions{}
	if len(args) > 1 {
		grace, err := strconv.ParseInt(args[1], 10, 64)
		ts.Check(err)
		options.GracePeriodSeconds = &grace
	}
	ts.Check(s.fleet.api.CoreV1().Pods(s.namespace).Delete(context.Background(), args[0], options))
}

// in runs a command in a container by kubectl exec, and its output becomes the
// script's: in POD[/CONTAINER] COMMAND…
func in(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: in POD[/CONTAINER] COMMAND…")
	}
	s := of(ts)
	pod, container, _ := strings.Cut(args[0], "/")
	words := []string{"kubectl", "-n", s.namespace, "exec", pod}
	if container != "" {
		words = append(words, "-c", container)
	}
	out, err := s.fleet.program("", "legion", append(append(words, "--"), args[1:]...)...)
	if (err != nil) != neg {
		ts.Fatalf("%v\n%s\n%s", err, out, s.report(pod))
	}
	fmt.Fprint(ts.Stdout(), out)
}
