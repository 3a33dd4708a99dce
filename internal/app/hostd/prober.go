package hostd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"

	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/journal"
	"legion.dev/legion/internal/machine"
	"legion.dev/legion/internal/probe"
	"legion.dev/legion/internal/runner"
	"legion.dev/legion/internal/service"
)

// prober asks services how they are.
type prober struct {
	r    *runner.Runner
	logs *journal.Journal
	// said holds the newest run of each service in whose output the line that
	// its probe waits for was found: what was said stays said.
	said *sync.Map
}

func (p prober) Probe(ctx context.Context, q *service.Probe, t host.Target) (bool, string) {
	if q.Log != "" {
		return p.log(ctx, q.Log, t)
	}
	return probe.Run(ctx, q, func(ctx context.Context, c service.Command) (int, []byte, error) {
		exit, out, err := p.r.Output(ctx, runner.Request{
			Group: t.Group, Service: t.Service, Run: t.Run, Command: c, Context: t.Context, Cgroup: t.Cgroup, Tmp: t.Tmp,
		}, 10<<10)
		if err == nil && exit.Signal != 0 {
			err = fmt.Errorf("the command %s", machine.ExitWords(exit))
		}
		return exit.Code, out, err
	})
}

// log looks for a line that matches in what the run has written.
func (p prober) log(ctx context.Context, expression string, t host.Target) (bool, string) {
	key := t.Group + "/" + t.Service
	if run, ok := p.said.Load(key); ok && run == t.Run {
		return true, ""
	}
	want, err := regexp.Compile(expression)
	if err != nil {
		return false, err.Error()
	}
	read, write := io.Pipe()
	defer read.Close()
	go func() {
		write.CloseWithError(p.logs.Read(ctx, t.Group, t.Service, journal.Query{Run: t.Run, Tail: -1}, write))
	}()
	lines := bufio.NewScanner(read)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		// TIME STREAM FLAG TEXT
		fields := strings.SplitN(lines.Text(), " ", 4)
		if len(fields) == 4 && want.MatchString(fields[3]) {
			p.said.Store(key, t.Run)
			return true, ""
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Sprintf("cannot read what it has written: %v", err)
	}
	return false, fmt.Sprintf("no line that it has written matches %q", expression)
}
