package cli

import (
	"fmt"
	"strings"
	"time"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// The colours of states.
const (
	red    = "\x1b[1;31m"
	green  = "\x1b[1;32m"
	yellow = "\x1b[1;33m"
	grey   = "\x1b[2m"
	plain  = "\x1b[0m"
)

func (s *session) paint(colour, text string) string {
	if !s.Colour || colour == "" {
		return text
	}
	return colour + text + plain
}

func colourOf(active string) string {
	switch active {
	case "active", "reloading":
		return green
	case "failed":
		return red
	case "activating", "deactivating":
		return yellow
	default:
		return ""
	}
}

func (s *session) dot(active string) string {
	mark := "●"
	switch active {
	case "failed":
		mark = "×"
	case "inactive":
		mark = "○"
	}
	return s.paint(colourOf(active), mark)
}

// title is the name that people use: the unit's, or the pod's.
func title(g hostapi.Group) string {
	if namespace, name, ok := podOf(g); ok {
		return namespace + "/" + name
	}
	return g.Spec.Name
}

// place writes a remark with its file and line in front.
func place(w service.Warning) string {
	switch {
	case w.File == "":
		return w.Text
	case w.Line == 0:
		return w.File + ": " + w.Text
	default:
		return fmt.Sprintf("%s:%d: %s", w.File, w.Line, w.Text)
	}
}

// ago says how long something has been so: two units are enough to read.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	if d < time.Second {
		return "just now"
	}
	if d >= time.Minute {
		d = d.Truncate(time.Second)
	} else {
		d = d.Truncate(100 * time.Millisecond)
	}
	return twoUnits(d) + " ago"
}

func twoUnits(d time.Duration) string {
	parts := strings.Fields(calendar.FormatDuration(d))
	return strings.Join(parts[:min(2, len(parts))], " ")
}

func moment(t time.Time) string { return t.Local().Format("Mon 2006-01-02 15:04:05 MST") }

// since is when a group came into its state: the newest of its services.
func since(g hostapi.Group) time.Time {
	var t time.Time
	if g.Status.Trigger != nil {
		t = g.Status.Trigger.Since
	}
	for _, st := range g.Status.Services {
		if st.Since.After(t) {
			t = st.Since
		}
	}
	return t
}

func restarts(g hostapi.Group) int {
	n := 0
	for _, st := range g.Status.Services {
		n += st.Restarts
	}
	return n
}

// ended puts an exit into words.
func ended(e *service.Exit) string {
	switch {
	case e.Unknown:
		return "ended, nobody knows how"
	case e.OOM:
		return "was killed because memory ran out"
	case e.Signal != 0 && e.Core:
		return "was killed by " + unitfile.SignalName(e.Signal) + " and dumped core"
	case e.Signal != 0:
		return "was killed by " + unitfile.SignalName(e.Signal)
	default:
		return fmt.Sprintf("ended with status %d", e.Code)
	}
}

// lastRun is the newest run that has ended.
func lastRun(st service.Status) *service.Run {
	if st.Main != nil && st.Main.Exit != nil {
		return st.Main
	}
	return st.Previous
}
