package serverd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"legion.dev/legion/internal/daemonset"
)

func statusCommand(in *fleetFlags) *cobra.Command {
	var wait bool
	var limit time.Duration
	c := &cobra.Command{
		Use: "status ds/NAME", Short: "Follow an update to its end; the exit status is 1 if it halts", Args: oneDaemonSet,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := daemonSetName(args[0])
			if err != nil {
				return err
			}
			client, err := in.connect()
			if err != nil {
				return fmt.Errorf("cannot look at ds/%s: %w", name, err)
			}
			ctx := cmd.Context()
			if limit > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("the update of ds/%s did not end within %s", name, limit))
				defer cancel()
			}
			v := &rolloutView{client: client, namespace: in.namespace, name: name, out: cmd.OutOrStdout()}
			if f, ok := v.out.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
				v.terminal = int(f.Fd())
			} else {
				v.terminal = -1
			}
			return v.follow(ctx, wait)
		},
	}
	c.Flags().BoolVarP(&wait, "watch", "w", true, "wait for the end; false looks once")
	c.Flags().DurationVar(&limit, "timeout", 0, "how long to wait at most; 0 is for ever")
	return c
}

// rolloutView shows an update as it goes on.
type rolloutView struct {
	client          kubernetes.Interface
	namespace, name string
	out             io.Writer
	terminal        int // its file descriptor, -1 if there is none
	drawn           int // lines that the next picture replaces
	last            string
	// next is when there may be another picture, which takes a look at the fleet,
	// or another line: there is one a second at most, and the last.
	next time.Time
}

// follow shows the update until it is over or halts.
func (v *rolloutView) follow(ctx context.Context, wait bool) error {
	for {
		ds, err := v.client.AppsV1().DaemonSets(v.namespace).Get(ctx, v.name, metav1.GetOptions{})
		if err != nil {
			return v.failed(ctx, err)
		}
		if over, err := v.show(ctx, ds); over || err != nil || !wait {
			return err
		}
		w, err := v.client.AppsV1().DaemonSets(v.namespace).Watch(ctx, metav1.ListOptions{
			FieldSelector: "metadata.name=" + v.name, ResourceVersion: ds.ResourceVersion,
		})
		if err != nil {
			return v.failed(ctx, err)
		}
		over, err := v.watch(ctx, w)
		w.Stop()
		if over || err != nil {
			return err
		}
	}
}

func (v *rolloutView) watch(ctx context.Context, w watch.Interface) (over bool, err error) {
	var waiting *appsv1.DaemonSet // to be shown when due
	var due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return true, v.failed(ctx, ctx.Err())
		case <-due:
			due = nil
			if over, err := v.show(ctx, waiting); over || err != nil {
				return over, err
			}
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				return false, nil // it ended; the caller begins anew
			}
			ds, is := e.Object.(*appsv1.DaemonSet)
			if !is {
				continue
			}
			if e.Type == watch.Deleted {
				return true, fmt.Errorf("ds/%s in namespace %s was deleted", v.name, v.namespace)
			}
			if _, over, err := outcome(ds); !over && err == nil && time.Now().Before(v.next) {
				if waiting = ds; due == nil {
					due = time.After(time.Until(v.next))
				}
				continue
			}
			due = nil
			if over, err := v.show(ctx, ds); over || err != nil {
				return over, err
			}
		}
	}
}

func (v *rolloutView) failed(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return fmt.Errorf("cannot follow ds/%s in namespace %s: %w", v.name, v.namespace, err)
}

func (v *rolloutView) show(ctx context.Context, ds *appsv1.DaemonSet) (over bool, err error) {
	text, over, err := outcome(ds)
	if v.terminal < 0 {
		if text != v.last {
			v.last, v.next = text, time.Now().Add(time.Second)
			if _, err := fmt.Fprintln(v.out, text); err != nil {
				return true, err
			}
		}
		return over, err
	}
	began := time.Now()
	defer func() { v.next = time.Now().Add(max(100*time.Millisecond, 3*time.Since(began))) }()
	lines := []string{progressBar(ds, v.width())}
	if s, err := gather(ctx, v.client, ds); err == nil {
		lines = append(lines, s.zoneLines(time.Now())...)
	}
	v.draw(append(lines, wrapped(text, v.width()-1)...))
	return over, err
}

// outcome says in a line how the update is, whether it is over, and if it has
// not come to its end why.
func outcome(ds *appsv1.DaemonSet) (text string, over bool, err error) {
	s := ds.Status
	count := fmt.Sprintf("%d of %d updated, %d available", s.UpdatedNumberScheduled, s.DesiredNumberScheduled, s.NumberAvailable)
	if s.ObservedGeneration < ds.Generation {
		return "waiting for the controller to see the change", false, nil
	}
	conditions := map[appsv1.DaemonSetConditionType]appsv1.DaemonSetCondition{}
	for _, c := range s.Conditions {
		conditions[c.Type] = c
	}
	p, told := conditions[daemonset.Progressing]
	if !told {
		// Another controller than Legion's says no more than the counts.
		over = s.UpdatedNumberScheduled >= s.DesiredNumberScheduled && s.NumberAvailable >= s.DesiredNumberScheduled
		return count, over, nil
	}
	text = p.Reason + ": " + p.Message
	halted := func(format string, args ...any) (string, bool, error) {
		return text, true, fmt.Errorf("the update of ds/%s "+format, append([]any{ds.Name}, args...)...)
	}
	options, wrong := daemonset.ParseOptions(ds.Annotations)
	switch {
	case len(wrong) > 0:
		return halted("is halted: %s", wrong[0])
	case options.Paused:
		return halted("is paused; `legion rollout resume ds/%s` lets it go on", ds.Name)
	case p.Reason == daemonset.ProgressDeadlineExceeded:
		return halted("has failed: %s", p.Message)
	case p.Reason == daemonset.UpdateComplete && conditions[daemonset.Degraded].Reason == daemonset.RolledBackReason:
		return halted("has failed: %s", conditions[daemonset.Degraded].Message)
	case p.Reason == daemonset.UpdateComplete, p.Reason == daemonset.PartitionReached, p.Reason == daemonset.OnDelete:
		return text, true, nil
	}
	return text, false, nil
}

func (v *rolloutView) width() int {
	if w, _, err := term.GetSize(v.terminal); err == nil && w > 0 {
		return w
	}
	return 80
}

// draw puts lines where the last ones were.
func (v *rolloutView) draw(lines []string) {
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", v.drawn)
	}
	width := v.width()
	for _, l := range lines {
		// A line that the terminal would break is cut, so that lines can be counted.
		if r := []rune(l); len(r) >= width {
			l = string(r[:max(width-2, 0)]) + "…"
		}
		b.WriteString(l + "\n")
	}
	v.drawn = len(lines)
	_, _ = io.WriteString(v.out, b.String())
}

// wrapped breaks a text into lines of so many characters, between words where
// there are some: what is wrong is told at its end.
func wrapped(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines, line = append(lines, line), "  "+word
		}
	}
	return append(lines, line)
}

// progressBar shows the updated nodes that are available as #, those that are
// not yet as +, and the rest as dots.
func progressBar(ds *appsv1.DaemonSet, width int) string {
	s := ds.Status
	total, updated := int(s.DesiredNumberScheduled), int(s.UpdatedNumberScheduled)
	head := fmt.Sprintf("ds/%s ", ds.Name)
	tail := fmt.Sprintf(" %d/%d updated, %d available", updated, total, s.NumberAvailable)
	room := min(max(width-len(head)-len(tail)-4, 10), 50)
	if total == 0 {
		return head + "[" + strings.Repeat(".", room) + "]" + tail
	}
	ready := max(updated-max(total-int(s.NumberAvailable), 0), 0)
	full, begun := ready*room/total, updated*room/total
	return head + "[" + strings.Repeat("#", full) + strings.Repeat("+", begun-full) + strings.Repeat(".", room-begun) + "]" + tail
}

// maxZones is how many zones are shown.
const maxZones = 16

// zoneLines counts the nodes of each zone that are done.
func (s *fleetState) zoneLines(now time.Time) []string {
	f := s.fleet(now)
	type count struct{ total, updated, down int }
	zones := map[string]*count{}
	for _, n := range s.nodes {
		v, _ := f.Verdict(n.Name)
		if v.Share.Desired == 0 {
			continue
		}
		c := zones[s.zones[n.Name]]
		if c == nil {
			c = &count{}
			zones[s.zones[n.Name]] = c
		}
		c.total++
		c.updated += v.Share.Updated
		c.down += 1 - v.Share.Available
	}
	if len(zones) < 2 {
		return nil
	}
	var lines []string
	names := slices.SortedFunc(maps.Keys(zones), daemonset.CompareValues)
	for i, name := range names {
		if i == maxZones {
			lines = append(lines, fmt.Sprintf("  %d zones more", len(names)-i))
			break
		}
		c := zones[name]
		label := name
		if label == "" {
			label = "(no zone)"
		}
		down := ""
		if c.down > 0 {
			down = fmt.Sprintf("  %d unavailable", c.down)
		}
		lines = append(lines, fmt.Sprintf("  %-24s %d/%d updated%s", label, c.updated, c.total, down))
	}
	return lines
}
