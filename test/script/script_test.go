// Package script runs what a person would type: scripts of commands against
// real legiond and legion programs. See testdata/*.txtar, and the commands
// below that the scripts have beside those of testscript.
package script

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/service"
)

// patience bounds every wait for an event.
const patience = 30 * time.Second

var bin string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if bin = os.Getenv("LEGION_BIN"); bin != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "legion-script-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	out, err := exec.Command("go", "build", "-o", dir, "legion.dev/legion/cmd/legion", "legion.dev/legion/cmd/legiond").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "cannot build the programs: %v\n%s", err, out)
		return 1
	}
	bin = dir
	return m.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			// A path of a socket is at most 107 bytes long.
			dir, err := os.MkdirTemp("", "legion-")
			if err != nil {
				return err
			}
			h := &host{dir: dir, units: filepath.Join(e.WorkDir, "units")}
			e.Values[key{}] = h
			e.Defer(func() {
				h.stop(t)
				_ = os.RemoveAll(dir)
			})
			e.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
			e.Setenv("LEGION_DIR", dir)
			e.Setenv("NO_COLOR", "1")
			examples, err := filepath.Abs("../../examples/units")
			if err != nil {
				return err
			}
			e.Setenv("EXAMPLES", examples)
			return os.MkdirAll(h.units, 0o755)
		},
		Condition: func(cond string) (bool, error) {
			file, ok := strings.CutPrefix(cond, "exists:")
			if !ok {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			_, err := os.Stat(file)
			return err == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"legiond-up":    up,
			"legiond-crash": crash,
			"legiond-ended": hasEnded,
			"legiond-log":   hostLog,
			"kill-main":     killMain,
			"same-main":     sameMain,
			"await":         await,
			"await-gone":    awaitGone,
			"await-log":     awaitLog,
			"put":           put,
		},
	})
}

type key struct{}

// host is the legiond of one script.
type host struct {
	dir, units string
	cmd        *exec.Cmd
	ended      chan error
	mains      map[string]int // what same-main has seen
}

func of(ts *testscript.TestScript) *host { return ts.Value(key{}).(*host) }

func (h *host) client() *hostclient.Client {
	return hostclient.New(filepath.Join(h.dir, "host.sock"))
}

// up starts legiond on the script's units and waits until it says that it is
// ready: legiond-up [FLAG…].
func up(ts *testscript.TestScript, neg bool, args []string) {
	h := of(ts)
	if neg || h.cmd != nil {
		ts.Fatalf("usage: legiond-up [FLAG…], once until it ends")
	}
	notes, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(h.dir, "ready"), Net: "unixgram"})
	ts.Check(err)
	defer os.Remove(filepath.Join(h.dir, "ready"))
	defer notes.Close()
	log, err := os.OpenFile(filepath.Join(h.dir, "legiond.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	ts.Check(err)
	defer log.Close()
	h.cmd = exec.Command(filepath.Join(bin, "legiond"), append([]string{"--dir", h.dir, "--units", h.units}, args...)...)
	h.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(h.dir, "ready"))
	h.cmd.Stdout, h.cmd.Stderr = log, log
	ts.Check(h.cmd.Start())
	ended := make(chan error, 1)
	h.ended = ended
	go func(c *exec.Cmd) { ended <- c.Wait() }(h.cmd)
	ts.Check(notes.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 4096)
	for {
		n, err := notes.Read(buf)
		if err != nil {
			data, _ := os.ReadFile(filepath.Join(h.dir, "legiond.log"))
			ts.Fatalf("legiond did not become ready: %v\n%s", err, data)
		}
		if strings.Contains("\n"+string(buf[:n]), "\nREADY=1") {
			return
		}
	}
}

// stop ends legiond and all that it runs.
func (h *host) stop(t testing.TB) {
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-h.ended:
	case <-time.After(patience):
		t.Errorf("legiond did not stop on SIGTERM")
		_ = h.cmd.Process.Kill()
		<-h.ended
	}
	h.cmd = nil
}

// crash kills legiond and nothing else.
func crash(ts *testscript.TestScript, neg bool, args []string) {
	h := of(ts)
	if neg || len(args) > 0 || h.cmd == nil {
		ts.Fatalf("usage: legiond-crash")
	}
	ts.Check(h.cmd.Process.Kill())
	<-h.ended
	h.cmd = nil
}

// hasEnded waits until legiond has ended by itself, with a status:
// legiond-ended STATUS.
func hasEnded(ts *testscript.TestScript, neg bool, args []string) {
	h := of(ts)
	if neg || len(args) != 1 || h.cmd == nil {
		ts.Fatalf("usage: legiond-ended STATUS")
	}
	select {
	case <-h.ended:
	case <-time.After(patience):
		ts.Fatalf("legiond goes on")
	}
	if code := strconv.Itoa(h.cmd.ProcessState.ExitCode()); code != args[0] {
		ts.Fatalf("legiond ended with %s", code)
	}
	h.cmd = nil
}

// hostLog makes what legiond has logged the output of the script.
func hostLog(ts *testscript.TestScript, _ bool, _ []string) {
	data, err := os.ReadFile(filepath.Join(of(ts).dir, "legiond.log"))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("legiond.log"), data, 0o644))
}

func (h *host) main(unit string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	g, err := h.client().Group(ctx, unit)
	if err != nil {
		return 0, err
	}
	if m := g.Status.Services[0].Main; m != nil && m.Exit == nil {
		return m.PID, nil
	}
	return 0, fmt.Errorf("%s has no process", unit)
}

// killMain sends SIGKILL to the main process of a unit: kill-main UNIT.
func killMain(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: kill-main UNIT")
	}
	pid, err := of(ts).main(args[0])
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
}

// sameMain holds the main process of a unit against the one that it had at the
// last same-main: [!] same-main UNIT.
func sameMain(ts *testscript.TestScript, neg bool, args []string) {
	h := of(ts)
	if len(args) != 1 {
		ts.Fatalf("usage: [!] same-main UNIT")
	}
	pid, err := h.main(args[0])
	ts.Check(err)
	if h.mains == nil {
		h.mains = map[string]int{}
	}
	if old, ok := h.mains[args[0]]; ok && (old == pid) == neg {
		ts.Fatalf("the main process of %s was %d and is %d", args[0], old, pid)
	}
	h.mains[args[0]] = pid
}

var errSeen = errors.New("seen")

// await waits for a state of a unit, and for a number of restarts:
// await UNIT STATE [RESTARTS].
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await UNIT STATE [RESTARTS]")
	}
	restarts := -1
	if len(args) > 2 {
		n, err := strconv.Atoi(args[2])
		ts.Check(err)
		restarts = n
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last service.Status
	err := of(ts).client().Watch(ctx, func(ev hostapi.Event) error {
		if ev.Name != args[0] || ev.Group == nil || len(ev.Group.Status.Services) == 0 {
			return nil
		}
		last = ev.Group.Status.Services[0]
		if string(last.State) == args[1] && (restarts < 0 || last.Restarts == restarts) {
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		ts.Fatalf("%s is not %s: %v; it was seen last as %+v", args[0], args[1], err, last)
	}
}

// awaitGone waits until legiond has forgotten a unit: await-gone UNIT.
func awaitGone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await-gone UNIT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	there := false
	err := of(ts).client().Watch(ctx, func(ev hostapi.Event) error {
		switch {
		case ev.Name == args[0]:
			if there = ev.Type == hostapi.Changed; !there {
				return errSeen
			}
		case ev.Type == hostapi.Synced && !there:
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		ts.Fatalf("%s is still there: %v", args[0], err)
	}
}

// awaitLog follows the output of a unit until a line holds the text:
// await-log UNIT TEXT.
func awaitLog(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await-log UNIT TEXT")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := of(ts).client().Logs(ctx, args[0], hostapi.LogQuery{Follow: true, Tail: -1})
	ts.Check(err)
	defer r.Close()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if strings.Contains(lines.Text(), args[1]) {
			return
		}
	}
	ts.Fatalf("%s did not write %q: %v", args[0], args[1], lines.Err())
}

// put gives legiond a group, as the agent does with a pod: put FILE.
func put(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: put FILE")
	}
	var g service.Group
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &g))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := of(ts).client().Put(ctx, g)
	ts.Check(err)
}
