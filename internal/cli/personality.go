package cli

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// systemdVersion is the release whose behaviour the programs below have.
const systemdVersion = "252"

// personality is a program of systemd's that legion is, where it is called by
// its name or as "legion NAME".
type personality struct {
	name  string
	short string
	run   func(*session, context.Context, []string) error
}

func personalities() []personality {
	return []personality{
		{"systemctl", "systemd's systemctl(1), for scripts", runSystemctl},
		{"journalctl", "systemd's journalctl(1), for scripts", runJournalctl},
		{"service", "service(8), for scripts", runService},
		{"systemd-notify", "systemd-notify(1), for services", runNotify},
		{"systemd-run", "systemd-run(1): run a command as a unit", runRun},
		{"systemd-analyze", "systemd-analyze(1): verify, calendar, timespan, dot, blame, critical-chain", runAnalyze},
		{"systemd-cat", "systemd-cat(1)", runCat},
		{"poweroff", "systemctl poweroff", powerVerb("poweroff")},
		{"reboot", "systemctl reboot", powerVerb("reboot")},
		{"halt", "systemctl halt", powerVerb("halt")},
		{"runlevel", "runlevel(8)", runRunlevel},
	}
}

func powerVerb(verb string) func(*session, context.Context, []string) error {
	return func(s *session, ctx context.Context, _ []string) error { return runSystemctl(s, ctx, []string{verb}) }
}

// runRunlevel prints the run level that the active targets stand for, without
// the one before, which nobody keeps; invoke-rc.d(8) asks for it.
func runRunlevel(s *session, ctx context.Context, _ []string) error {
	c := s.client()
	defer c.Close()
	for _, l := range []struct{ target, level string }{{"graphical.target", "5"}, {"multi-user.target", "3"}, {"rescue.target", "1"}} {
		if g, err := c.Group(ctx, l.target); err == nil && g.ActiveState == "active" {
			_, err = fmt.Fprintln(s.Out, "N", l.level)
			return err
		}
	}
	fmt.Fprintln(s.Out, "unknown")
	return &Exit{Status: exitFailure}
}

// personalityOf finds the program that legion was called as.
func personalityOf(name string) *personality {
	all := personalities()
	if i := slices.IndexFunc(all, func(p personality) bool { return p.name == name }); i >= 0 {
		return &all[i]
	}
	return nil
}

// main runs one of systemd's programs; its errors carry no name in front.
func (p *personality) main(args []string, env Env) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := p.run(&session{Env: env}, ctx, args)
	return statusOf(err, env.Err, "")
}

// personalityCommands make each of the programs a verb, too.
func personalityCommands() []func(*session) *cobra.Command {
	var out []func(*session) *cobra.Command
	for _, p := range personalities() {
		if p.name == "poweroff" || p.name == "reboot" || p.name == "halt" || p.name == "runlevel" {
			continue
		}
		out = append(out, func(s *session) *cobra.Command {
			return &cobra.Command{
				Use: p.name + " [ARG…]", Short: p.short, DisableFlagParsing: true,
				RunE: func(cmd *cobra.Command, args []string) error { return p.run(s, cmd.Context(), args) },
			}
		})
	}
	return out
}

// flags makes the flag set of a program, with --help.
func flags(name string) *pflag.FlagSet {
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	return f
}

// parse reads the arguments; done is set where there is nothing else to do.
func (s *session) parse(f *pflag.FlagSet, args []string, usage string) (done bool, err error) {
	version := f.Bool("version", false, "print the version")
	err = f.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprintf(s.Out, "%s\n\n%s", usage, f.FlagUsages())
		return true, nil
	case err != nil:
		return false, &Exit{exitFailure, fmt.Errorf("%s: %w\nsee: %s --help", f.Name(), err, f.Name())}
	case *version:
		fmt.Fprintf(s.Out, "systemd %s (legion %s)\n", systemdVersion, s.Version)
		return true, nil
	}
	return false, nil
}

// accepted declares flags that are read and mean nothing here: there is one
// host, no pager, nobody to ask for a password.
func accepted(f *pflag.FlagSet, names ...string) {
	for _, n := range names {
		f.Bool(n, false, "accepted; it means nothing here")
	}
}
