package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/view"
)

func statusCommand(s *session) *cobra.Command {
	lines := 10
	c := &cobra.Command{
		Use:   "status [UNIT…]",
		Short: "Show how units are: state, process, last lines, and what is not honoured",
		Long: "Show how units are. Without UNIT: the host, and all of its units.\n" +
			"Exit status: 0 all are active, 3 one is not, 4 there is no such unit.",
		ValidArgsFunction: s.completeUnits,
		RunE: func(cmd *cobra.Command, args []string) error {
			c := s.client()
			defer c.Close()
			if len(args) == 0 {
				return explained(s.hostStatus(cmd.Context(), c))
			}
			return explained(s.unitStatus(cmd.Context(), c, args, lines))
		},
	}
	c.Flags().IntVarP(&lines, "lines", "n", lines, "how many of the last lines of output to show")
	return c
}

func (s *session) unitStatus(ctx context.Context, c *hostclient.Client, args []string, lines int) error {
	asJSON, err := s.json()
	if err != nil {
		return err
	}
	groups, err := s.find(ctx, c, args)
	if err != nil {
		return err
	}
	if asJSON {
		err = s.printJSON(groups)
	} else {
		// The units are told of even if the host cannot be.
		info, infoErr := c.Info(ctx)
		for i, g := range groups {
			if i > 0 {
				fmt.Fprintln(s.Out)
			}
			s.printGroup(g)
			if infoErr == nil {
				s.logProblems(info, g)
			}
			s.printTail(ctx, c, g, lines)
		}
	}
	for _, g := range groups {
		if g.ActiveState != "active" && g.ActiveState != "reloading" && err == nil {
			err = &Exit{Status: exitNotRunning}
		}
	}
	return err
}

// field prints one labelled line; the label is aligned at its colon.
func (s *session) field(label, format string, args ...any) {
	fmt.Fprintf(s.Out, "%11s: %s\n", label, fmt.Sprintf(format, args...))
}

func (s *session) more(text string) { fmt.Fprintf(s.Out, "%13s%s\n", "", text) }

func (s *session) printGroup(g hostapi.Group) {
	head := s.dot(g.ActiveState) + " " + title(g)
	if d := g.Spec.Description; d != "" && d != g.Spec.Name {
		head += " - " + d
	}
	fmt.Fprintln(s.Out, head)
	if title(g) != g.Spec.Name {
		s.field("Group", "%s", g.Spec.Name)
	}
	for i, f := range g.Spec.Source.Files {
		if i == 0 {
			s.field("Loaded", "%s", f)
		} else {
			s.field("Drop-In", "%s", f)
		}
	}
	state := s.paint(colourOf(g.ActiveState), g.ActiveState+" ("+g.SubState+")")
	if t := since(g); !t.IsZero() {
		state += " since " + moment(t) + "; " + ago(time.Now(), t)
	}
	s.field("Active", "%s", state)
	if g.Status.By != "" {
		asked := "stopped"
		if g.Status.Wanted {
			asked = "wanted"
		}
		s.field("Asked", "%s (%s)", asked, g.Status.By)
	}
	s.printTrigger(g, time.Now())
	for _, st := range g.Status.Services {
		if len(g.Status.Services) > 1 {
			s.field("Service", "%s: %s", st.Name, s.paint(colourOf(view.ActiveState(st.State)), string(st.State)))
		}
		s.printService(st)
	}
	s.warnings("Warnings", g.Status.Warnings)
}

func (s *session) printService(st service.Status) {
	if st.Main != nil && st.Main.Exit == nil && st.Main.PID > 0 {
		s.field("Main PID", "%d (%s), run %d, started %s", st.Main.PID, command(st.Main.PID), st.Main.Number, ago(time.Now(), st.Main.Started))
	}
	if st.ControlPID > 0 {
		s.field("Helper PID", "%d (%s)", st.ControlPID, command(st.ControlPID))
	}
	if last := lastRun(st); last != nil && last.Exit != nil {
		s.field("Last run", "run %d %s, %s", last.Number, ended(last.Exit), ago(time.Now(), last.Exit.At))
	}
	if st.Restarts > 0 || st.NextRestart != nil {
		text := strconv.Itoa(st.Restarts)
		if st.NextRestart != nil {
			text += ", the next at " + moment(*st.NextRestart)
		}
		s.field("Restarts", "%s", text)
	}
	if st.Reason != "" {
		s.field("Reason", "%s", st.Reason)
	}
	if st.Probe != "" {
		s.field("Probe", "%s", s.paint(yellow, st.Probe))
	}
	if st.Text != "" {
		s.field("Status", "%q", st.Text)
	}
	for i, l := range st.Lost {
		if i == 0 {
			s.field("Lost", "%s", s.paint(yellow, l))
		} else {
			s.more(s.paint(yellow, l))
		}
	}
	s.printTree(st)
}

// printTree lists the processes of a service: those of its cgroup, else the
// main process and its descendants.
func (s *session) printTree(st service.Status) {
	var pids []int
	if st.Cgroup != "" {
		pids = members(st.Cgroup)
	} else if st.Main != nil && st.Main.Exit == nil && st.Main.PID > 0 {
		pids = descendants(st.Main.PID)
	}
	if len(pids) == 0 {
		return
	}
	if st.Cgroup != "" {
		s.field("Cgroup", "%s", st.Cgroup)
	} else {
		s.field("Processes", "%d", len(pids))
	}
	const most = 20
	for i, pid := range pids {
		branch := "├─"
		if i == len(pids)-1 {
			branch = "└─"
		}
		if i == most {
			s.more(fmt.Sprintf("└─and %d more", len(pids)-most))
			return
		}
		s.more(branch + strconv.Itoa(pid) + " " + arguments(pid))
	}
}

// members are the processes of a cgroup and of those below it.
func members(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil // what has ended meanwhile is not shown
		}
		data, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// descendants are a process and its children, and theirs.
func descendants(pid int) []int {
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// pid (comm) state ppid: comm may hold anything, also parentheses.
		data, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			children[parent] = append(children[parent], child)
		}
	}
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out
}

// command is the name of a process, "?" where it cannot be read.
func command(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(data))
}

func arguments(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(data) == 0 {
		return "[" + command(pid) + "]"
	}
	text := []rune(strings.TrimSpace(strings.ReplaceAll(string(data), "\x00", " ")))
	if len(text) > 120 {
		text = append(text[:119], '…')
	}
	return string(text)
}

// printTail shows the last lines of output; there may be none, and a status
// without them is better than an error.
func (s *session) printTail(ctx context.Context, c *hostclient.Client, g hostapi.Group, lines int) {
	if lines <= 0 || len(g.Spec.Services) == 0 {
		return
	}
	first := true
	_ = eachLog(ctx, c, g.Spec, hostapi.LogQuery{Tail: lines}, func(l logLine) error {
		if first {
			fmt.Fprintln(s.Out)
			first = false
		}
		if len(g.Spec.Services) == 1 {
			l.Service = ""
		}
		_, err := fmt.Fprintln(s.Out, s.formatLine(l))
		return err
	})
}

// hostStatus is status without a unit.
func (s *session) hostStatus(ctx context.Context, c *hostclient.Client) error {
	asJSON, err := s.json()
	if err != nil {
		return err
	}
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	groups, err := c.Groups(ctx)
	if err != nil {
		return err
	}
	if asJSON {
		return s.printJSON(struct {
			Host   hostapi.Info    `json:"host"`
			Groups []hostapi.Group `json:"groups"`
		}{info, groups})
	}
	counts := map[string]int{}
	for _, g := range groups {
		counts[g.ActiveState]++
	}
	state, colour := "running", green
	if counts["failed"] > 0 {
		state, colour = "degraded", red
	}
	name, _ := os.Hostname()
	fmt.Fprintf(s.Out, "%s %s\n", s.paint(colour, "●"), name)
	s.field("State", "%s", s.paint(colour, state))
	s.field("Units", "%d loaded, %d active, %d failed", len(groups), counts["active"]+counts["reloading"], counts["failed"])
	s.field("legiond", "%s, PID %d, since %s; %s", info.Version, info.PID, moment(info.StartedAt), ago(time.Now(), info.StartedAt))
	s.field("Unit path", "%s", strings.Join(info.UnitPath, ", "))
	tracking := "cgroup " + info.Cgroup
	if info.CgroupReason != "" {
		tracking += s.paint(yellow, ": "+info.CgroupReason)
	}
	s.field("Tracking", "%s", tracking)
	s.warnings("Problems", info.Problems)
	fmt.Fprintln(s.Out)
	return s.table(groups, false)
}

// logProblems says what keeps the output of a group from being written, if
// anything does: a full disk is the host's problem and shows in each unit.
func (s *session) logProblems(info hostapi.Info, g hostapi.Group) {
	var found []service.Warning
	for _, p := range info.Problems {
		if p.File != "" && slices.ContainsFunc(g.Status.Services, func(st service.Status) bool {
			return st.LogDir != "" && strings.HasPrefix(st.LogDir+"/", p.File+"/")
		}) {
			found = append(found, p)
		}
	}
	s.warnings("Problems", found)
}

func (s *session) warnings(label string, list []service.Warning) {
	for i, w := range list {
		if i == 0 {
			s.field(label, "%s", s.paint(yellow, place(w)))
		} else {
			s.more(s.paint(yellow, place(w)))
		}
	}
}
