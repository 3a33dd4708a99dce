// Package cli is the command line: one file per verb. A verb asks legiond over
// its socket, prints, and chooses an exit status; it decides nothing else.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/service"
)

// Env is what the command line takes from the process it runs in.
type Env struct {
	Version string
	// Called is the name that the program was called by; systemctl and the
	// other names of systemd's programs choose what it does.
	Called   string
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	// Root: the user is root, whose files are below /var/lib/legion.
	Root bool
	// Colour: Out is a terminal that wants colours.
	Colour bool
}

// Exit statuses, those of systemctl(1) and of the LSB's init scripts.
const (
	exitOK         = 0
	exitFailure    = 1
	exitUsage      = 2
	exitNotRunning = 3
	exitNoSuchUnit = 4
)

// session is one call of the program: its surroundings and global flags.
type session struct {
	Env
	socket string // -H
	output string // -o
	// jobMode is systemctl's --job-mode.
	jobMode service.JobMode
}

// verbs are the builders of the sub-commands, by the heading under which the
// help text has them. Each verb has a file of its own.
var verbs = []struct {
	heading  string
	builders []func(*session) *cobra.Command
}{
	{"The services of one host:", []func(*session) *cobra.Command{
		statusCommand, listCommand, startCommand, stopCommand, restartCommand, reloadCommand,
		logsCommand, explainCommand, resetFailedCommand, daemonReloadCommand, verifyCommand, calendarCommand, reexecCommand, poweroffCommand,
		isActiveCommand, isFailedCommand, killCommand, topCommand, bootCommand, imageCommand,
	}},
	{"Unit files:", []func(*session) *cobra.Command{
		enableCommand, disableCommand, reenableCommand, maskCommand, unmaskCommand, presetCommand, editCommand, revertCommand, isEnabledCommand,
		listUnitFilesCommand, listDependenciesCommand, catCommand, showCommand,
	}},
	{"A fleet:", []func(*session) *cobra.Command{
		upCommand, downCommand, nodesCommand, kubectlCommand, planCommand, rolloutCommand, tokenCommand, joinCommand, promoteCommand,
	}},
	{"In the place of systemd's programs:", append(personalityCommands(), installAsSystemdCommand)},
	{"Others:", []func(*session) *cobra.Command{versionCommand}},
}

// Exit is an error with an exit status of its own. An Err of nil prints nothing.
type Exit struct {
	Status int
	Err    error
}

func (e *Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Status)
	}
	return e.Err.Error()
}

func (e *Exit) Unwrap() error { return e.Err }

// Main runs the command line and returns the exit status.
func Main(args []string, env Env) int {
	if p := personalityOf(env.Called); p != nil {
		return p.main(args, env)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	root := newRoot(&session{Env: env})
	root.SetArgs(args)
	return status(root.ExecuteContext(ctx), env.Err)
}

// status prints an error, once, and gives its exit status.
func status(err error, w io.Writer) int { return statusOf(err, w, "legion: ") }

func statusOf(err error, w io.Writer, prefix string) int {
	if err == nil {
		return exitOK
	}
	code := exitFailure
	var exit *Exit
	if errors.As(err, &exit) {
		code = exit.Status
		if exit.Err == nil {
			return code
		}
	}
	fmt.Fprintf(w, "%s%v\n", prefix, err)
	return code
}

func newRoot(s *session) *cobra.Command {
	root := &cobra.Command{
		Use:           "legion",
		Short:         "Run daemons on one host, or on every host of a fleet",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &Exit{exitUsage, fmt.Errorf("%w\nsee: %s --help", err, c.CommandPath())}
	})
	f := root.PersistentFlags()
	f.StringVarP(&s.socket, "host", "H", "", "the socket of the legiond to ask (default $LEGION_HOST, $LEGION_DIR/host.sock, then the user's own)")
	f.StringVarP(&s.output, "output", "o", "", "output format: empty for people, json for programs")
	for _, part := range verbs {
		root.AddGroup(&cobra.Group{ID: part.heading, Title: part.heading})
		for _, build := range part.builders {
			c := build(s)
			c.GroupID = part.heading
			root.AddCommand(c)
		}
		root.SetHelpCommandGroupID(part.heading)
		root.SetCompletionCommandGroupID(part.heading)
	}
	return root
}
