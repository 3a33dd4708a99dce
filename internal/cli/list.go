package cli

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/hostapi"
)

func listCommand(s *session) *cobra.Command {
	var failed, all, onlyTimers bool
	var types, states []string
	c := &cobra.Command{
		Use:     "list [PATTERN…]",
		Aliases: []string{"list-units", "ls"},
		Short:   "List the units and pods of the host",
		RunE: func(cmd *cobra.Command, args []string) error {
			wide := s.output == "wide"
			asJSON := false
			if !wide {
				var err error
				if asJSON, err = s.json(); err != nil {
					return err
				}
			}
			patterns, err := mangled(args)
			if err != nil {
				return err
			}
			c := s.client()
			defer c.Close()
			groups, err := c.Groups(cmd.Context())
			if err != nil {
				return explained(err)
			}
			kept := []hostapi.Group{}
			for _, g := range groups {
				named := matches(g.Spec.Name, patterns) || matches(title(g), args)
				inState := len(states) == 0 || slices.Contains(states, g.ActiveState) || slices.Contains(states, g.SubState)
				if named && inState && ofType(g.Spec.Name, types) && (!failed || g.ActiveState == "failed") {
					kept = append(kept, g)
				}
			}
			if onlyTimers {
				kept = timers(kept)
			}
			if asJSON {
				return s.printJSON(kept)
			}
			every := all || failed || len(states) > 0 || len(patterns) > 0
			if onlyTimers {
				return s.timerTable(kept, every, time.Now())
			}
			return s.rows(kept, every, wide)
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also those that are inactive and that nobody has asked for")
	c.Flags().StringSliceVarP(&types, "type", "t", nil, "only units of these types: service, timer …")
	c.Flags().StringSliceVar(&states, "state", nil, "only units in these states: active, failed, running …")
	c.Flags().BoolVar(&failed, "failed", false, "only those that have failed")
	c.Flags().BoolVar(&onlyTimers, "timers", false, "the timers: when they elapse next, and when they last did")
	return c
}

// idle says whether there is nothing to tell of a group: it is inactive, and
// nobody wants it to be otherwise.
func idle(g hostapi.Group) bool { return g.ActiveState == "inactive" && !g.Status.Wanted }

// table prints the groups, pods behind units; idle ones only if all is set.
func (s *session) table(groups []hostapi.Group, all bool) error { return s.rows(groups, all, false) }

// rows prints the table; wide has memory, tasks and the file, too.
func (s *session) rows(groups []hostapi.Group, all, wide bool) error {
	if !all {
		before := len(groups)
		groups = slices.DeleteFunc(groups, idle)
		if hidden := before - len(groups); hidden > 0 {
			defer fmt.Fprintf(s.Out, "\n%d inactive, not shown; legion list --all shows them\n", hidden)
		}
	}
	if len(groups) == 0 {
		_, err := fmt.Fprintln(s.Out, "no units are active")
		return err
	}
	sort.SliceStable(groups, func(i, j int) bool {
		_, _, podI := podOf(groups[i])
		_, _, podJ := podOf(groups[j])
		if podI != podJ {
			return podJ
		}
		return title(groups[i]) < title(groups[j])
	})
	head := []string{" ", "UNIT", "ACTIVE", "SUB", "FOR", "RESTARTS", "PID"}
	if wide {
		head = append(head, "MEMORY", "TASKS", "FILE")
	}
	rows := [][]string{append(head, "DESCRIPTION")}
	now := time.Now()
	for _, g := range groups {
		pid, age := "", ""
		for _, st := range g.Status.Services {
			if st.Main != nil && st.Main.Exit == nil && st.Main.PID > 0 && pid == "" {
				pid = strconv.Itoa(st.Main.PID)
			}
		}
		if t := since(g); !t.IsZero() {
			age = strings.TrimSuffix(ago(now, t), " ago")
		}
		row := []string{s.dot(g.ActiveState), title(g), g.ActiveState, g.SubState, age, strconv.Itoa(restarts(g)), pid}
		if wide {
			row = append(row, wideCells(g)...)
		}
		rows = append(rows, append(row, g.Spec.Description))
	}
	return s.columns(rows)
}

// wideCells are memory, tasks and file.
func wideCells(g hostapi.Group) []string {
	var u usage
	for _, st := range g.Status.Services {
		u.add(usageOf(st))
	}
	memory, tasks, file := "", "", ""
	if u.tasks > 0 {
		memory, tasks = bytesText(u.memory), strconv.Itoa(u.tasks)
	}
	if len(g.Spec.Source.Files) > 0 {
		file = g.Spec.Source.Files[0]
	}
	return []string{memory, tasks, file}
}

// columns prints rows with aligned columns; the first holds a mark of width 1
// that may be coloured.
func (s *session) columns(rows [][]string) error {
	widths := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	widths[0] = 1
	for _, r := range rows {
		var b strings.Builder
		for i, cell := range r {
			b.WriteString(cell)
			if pad := widths[i] - utf8.RuneCountInString(cell); i > 0 && pad > 0 {
				b.WriteString(strings.Repeat(" ", pad))
			}
			b.WriteString("  ")
		}
		if _, err := fmt.Fprintln(s.Out, strings.TrimRight(b.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}
