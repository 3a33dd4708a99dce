package hostd

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/host"
	"legion.dev/legion/internal/keeper"
	"legion.dev/legion/internal/notify"
	"legion.dev/legion/internal/runner"
	"legion.dev/legion/internal/service"
)

// keeping is package keeper as the loop wants it; left is what the keeper has
// held since an earlier legiond.
type keeping struct {
	mu    sync.Mutex // of k: consoles are made beside the loop
	k     *keeper.Keeper
	left  keeper.Left
	notes *notify.Socket
	log   *slog.Logger
}

// findKept looks for the keeper of an earlier legiond. It is nil for PID 1, with
// whose end everything ends.
func findKept(o Options, procs *runner.Runner, log *slog.Logger) *keeping {
	if os.Getpid() == 1 {
		return nil
	}
	k, left, err := keeper.Find(filepath.Join(o.Dir, "run", ".keeper"), startKeeper(procs))
	if err != nil {
		log.Error("what services have left and said while legiond was away is lost", "error", err)
	}
	return &keeping{k: k, left: left, log: log}
}

// startKeeper has legiond's own program be the keeper.
func startKeeper(procs *runner.Runner) keeper.Start {
	return func(path string, listener, conn int) error {
		p, err := procs.Start(runner.Request{
			Group: "legiond", Service: "keeper", Context: &service.ExecContext{},
			Command: service.Command{Path: "/proc/self/exe", Argv: []string{keeper.Argv0, path}, NoExpand: true},
			Env:     []string{"GOMAXPROCS=1"},
			Files:   []runner.File{{Name: "listener", FD: listener}, {Name: "connection", FD: conn}},
		})
		if err == nil {
			p.Close() // its end is seen when it is wanted
		}
		return err
	}
}

func (k *keeping) port(notes *notify.Socket) host.Keeper {
	if k == nil {
		return nil
	}
	k.notes = notes
	return k
}

func (k *keeping) end() {
	if k != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.k.End()
	}
}

func (k *keeping) Put(key string, f host.File) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.k.Put(key, keeper.File(f)); err != nil {
		k.log.Error("a file would not outlive legiond", "file", key, "error", err)
	}
}

func (k *keeping) Drop(key, name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.k.Drop(key, name); err != nil {
		k.log.Error("a file is kept that nobody wants", "file", key, "error", err)
	}
}

func (k *keeping) Holds(key string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.k.Holds(key)
}

func (k *keeping) Heard() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.k.Heard()
}

func (k *keeping) Hear() {
	if k.Holds(keeper.Notify) {
		return
	}
	fd, err := k.notes.FD()
	if err != nil {
		k.log.Error("what services say while legiond is away is lost", "error", err)
		return
	}
	k.Put(keeper.Notify, host.File{FD: fd})
	unix.Close(fd)
}

// notes is the socket of sd_notify(3): an earlier legiond's, if it is there.
func (l *legacy) notes(path string, k *keeping) (*notify.Socket, error) {
	if l != nil {
		return notify.Resume(path, os.NewFile(uintptr(l.Notify), "notify"))
	}
	if k == nil {
		return notify.Listen(path)
	}
	files := k.left.Files[keeper.Notify]
	if _, err := os.Stat(path); err == nil && len(files) == 1 {
		delete(k.left.Files, keeper.Notify)
		return notify.Resume(path, os.NewFile(uintptr(files[0].FD), "notify"))
	}
	k.Drop(keeper.Notify, "")
	return notify.Listen(path)
}

// handover is what there is of an earlier legiond: what it has handed over
// itself, or what was kept of one that was killed.
func (l *legacy) handover(k *keeping) *host.Handover {
	if l == nil && (k == nil || len(k.left.Files)+len(k.left.Notes) == 0) {
		return nil
	}
	v := &host.Handover{Crashed: true, Kept: map[string][]host.File{}, Sockets: map[string][]int{}, Consoles: map[string][]host.File{}}
	if l != nil {
		v = &l.Host
	}
	if k == nil {
		return v
	}
	for _, m := range k.left.Notes {
		v.Notes = append(v.Notes, messageOf(m))
	}
	for key, files := range k.left.Files {
		cgroup, isKept := strings.CutPrefix(key, host.KeptKey)
		console, isConsole := strings.CutPrefix(key, host.ConsoleKey)
		socket, isSocket := strings.CutPrefix(key, host.SocketKey)
		for _, f := range files {
			switch {
			case l == nil && isKept:
				v.Kept[cgroup] = append(v.Kept[cgroup], host.File(f))
			case l == nil && isConsole:
				v.Consoles[console] = append(v.Consoles[console], host.File(f))
			case l == nil && isSocket:
				v.Sockets[socket] = append(v.Sockets[socket], f.FD)
			default:
				unix.Close(f.FD) // handed over, too
			}
		}
	}
	k.left = keeper.Left{}
	return v
}
