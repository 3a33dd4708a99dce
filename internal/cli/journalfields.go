package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/calendar"
	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
)

// journalFields gives lines the fields of systemd.journal-fields(7).
type journalFields struct {
	host string
	ids  map[string]string // the programs of units
	runs map[string][]service.Run
}

func newJournalFields(host string, groups []hostapi.Group) *journalFields {
	f := &journalFields{host, map[string]string{hostapi.Outside: hostapi.Outside}, map[string][]service.Run{}}
	for _, g := range groups {
		f.ids[g.Spec.Name] = identifier(g.Spec)
		for _, st := range g.Status.Services {
			for _, r := range []*service.Run{st.Main, st.Previous} {
				if r != nil && r.PID > 0 {
					f.runs[g.Spec.Name+"/"+st.Name] = append(f.runs[g.Spec.Name+"/"+st.Name], *r)
				}
			}
		}
	}
	return f
}

// pid is the process that has written a line, as far as it is known: who speaks
// by syslog says it, and of what comes by standard output it is the main process
// of that time, the last two of which are known.
func (f *journalFields) pid(l unitLog, v said) string {
	if v.pid != "" {
		return v.pid
	}
	// A line is dated when it is read, and a run when legiond hears of it.
	for _, slack := range []time.Duration{0, time.Second} {
		for _, r := range f.runs[l.unit+"/"+l.Service] {
			if !l.Time.Before(r.Started.Add(-slack)) && (r.Exit == nil || !l.Time.After(r.Exit.At.Add(slack))) {
				return strconv.Itoa(r.PID)
			}
		}
	}
	return ""
}

func (f *journalFields) of(l unitLog) map[string]string {
	v := speaker(l, f.ids)
	fields := map[string]string{
		"__REALTIME_TIMESTAMP": strconv.FormatInt(l.Time.UnixMicro(), 10), "MESSAGE": v.text, "PRIORITY": strconv.Itoa(v.priority),
		"_SYSTEMD_UNIT": l.unit, "SYSLOG_IDENTIFIER": v.tag, "_HOSTNAME": f.host, "_TRANSPORT": v.transport, "LEGION_STREAM": l.Stream,
	}
	if l.unit == hostapi.Outside {
		delete(fields, "_SYSTEMD_UNIT")
	}
	if v.pid != "" {
		fields["SYSLOG_PID"] = v.pid
	}
	if pid := f.pid(l, v); pid != "" {
		fields["_PID"] = pid
	}
	return fields
}

// match keeps what "FIELD=VALUE" asks for: of one field one of the values, of
// each field one.
func (j *journalFlags) match(assignment string) error {
	field, value, ok := strings.Cut(assignment, "=")
	if !ok || field == "" || strings.Trim(field, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return fmt.Errorf("Failed to add match '%s': Invalid argument", assignment) //lint:ignore ST1005 journalctl's words
	}
	if j.fields == nil {
		j.fields = map[string][]string{}
	}
	j.fields[field] = append(j.fields[field], value)
	return nil
}

func (j *journalFlags) passes(fields map[string]string) bool {
	for name, values := range j.fields {
		if got, ok := fields[name]; !ok || !slices.Contains(values, got) {
			return false
		}
	}
	return true
}

// booted is when the machine did.
func booted() time.Time {
	var up unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(up.Nano()))
}

// listBoots prints the one boot that logs can be told apart by: this one.
func (s *session) listBoots(id string, first, last time.Time) {
	id, _, _ = strings.Cut(id, " ")
	fmt.Fprintf(s.Out, "IDX BOOT ID                          FIRST ENTRY                 LAST ENTRY\n")
	fmt.Fprintf(s.Out, "  0 %s %s %s\n", strings.ReplaceAll(id, "-", ""), calendar.FormatTime(first.Local()), calendar.FormatTime(last.Local()))
}

// journalFacts prints the values of a field, or the boots.
func (s *session) journalFacts(ctx context.Context, c *hostclient.Client, j *journalFlags, groups []hostapi.Group, q hostapi.LogQuery, filter logFilter, fields *journalFields) error {
	q.Follow = false
	var first, last time.Time
	seen := map[string]bool{}
	var values []string
	err := collect(ctx, c, groups, q, filter, func(l unitLog) error {
		if first.IsZero() {
			first = l.Time
		}
		last = l.Time
		if v, ok := fields.of(l)[j.values]; ok && !seen[v] {
			seen[v] = true
			values = append(values, v)
		}
		return nil
	})
	if err != nil {
		return explained(err)
	}
	if j.boots {
		info, err := c.Info(ctx)
		if err != nil || first.IsZero() {
			return explained(err)
		}
		s.listBoots(info.BootID, first, last)
		return nil
	}
	for _, v := range values {
		fmt.Fprintln(s.Out, v)
	}
	return nil
}
