package serverd

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"legion.dev/legion/internal/prefetch"
)

// prefetched is what became of it on all nodes; in JSON it is this.
type prefetched struct {
	Nodes []prefetchedNode `json:"nodes"`
	// Failed is how many of them do not have all their images.
	Failed int `json:"failed"`
}

type prefetchedNode struct {
	Node   string            `json:"node"`
	Images []prefetch.Result `json:"images,omitempty"`
	// Seconds is how long all of it took.
	Seconds float64 `json:"seconds"`
	// Error is why the node could not be asked.
	Error string `json:"error,omitempty"`
}

func (n prefetchedNode) failed() bool {
	return n.Error != "" || slices.ContainsFunc(n.Images, func(r prefetch.Result) bool { return r.Error != "" })
}

func (p *prefetched) add(n prefetchedNode) {
	p.Nodes = append(p.Nodes, n)
	if n.failed() {
		p.Failed++
	}
}

// prefetchView tells of each node as it ends, on a terminal also which ones the
// others wait for, once that takes longer than unhurried.
type prefetchView struct {
	out, err io.Writer
	json     bool
	total    int

	mu       sync.Mutex
	done     int
	busy     map[string]bool
	terminal int
	ticking  *time.Timer
	shown    bool
}

// unhurried is how long nothing need be said.
const unhurried = 2 * time.Second

func newPrefetchView(out, err io.Writer, asJSON bool, total int) *prefetchView {
	v := &prefetchView{out: out, err: err, json: asJSON, total: total, busy: map[string]bool{}, terminal: -1}
	if f, ok := err.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		v.terminal = int(f.Fd())
		v.ticking = time.AfterFunc(unhurried, v.tick)
	}
	return v
}

func (v *prefetchView) begins(node string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.busy[node] = true
}

// tick shows the line anew.
func (v *prefetchView) tick() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ticking == nil {
		return
	}
	v.hide()
	names := slices.Sorted(maps.Keys(v.busy))
	line := []rune(fmt.Sprintf("%d of %d nodes; waiting for %s", v.done, v.total, strings.Join(names, " ")))
	if width, _, err := term.GetSize(v.terminal); err == nil && width > 1 && len(line) >= width {
		line = append(line[:width-2], '…')
	}
	_, _ = io.WriteString(v.err, string(line))
	v.shown = true
	v.ticking.Reset(500 * time.Millisecond)
}

// hide takes the line away; the caller holds the lock.
func (v *prefetchView) hide() {
	if v.shown {
		_, _ = io.WriteString(v.err, "\r\x1b[K")
		v.shown = false
	}
}

func (v *prefetchView) ends(n prefetchedNode) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done++
	delete(v.busy, n.Node)
	v.hide()
	if v.json {
		return
	}
	for _, r := range n.Images {
		id, _, _ := strings.Cut(strings.TrimPrefix(r.ID, "sha256:"), " ")
		id = id[:min(len(id), 12)]
		switch {
		case r.Error != "":
			fmt.Fprintf(v.err, "%s: %s: %s\n", n.Node, r.Image, r.Error)
		case r.Pulled:
			fmt.Fprintf(v.out, "%s: %s %s pulled in %.1fs\n", n.Node, r.Image, id, r.Seconds)
		default:
			fmt.Fprintf(v.out, "%s: %s %s is there\n", n.Node, r.Image, id)
		}
	}
	if n.Error != "" {
		fmt.Fprintf(v.err, "%s: %s\n", n.Node, n.Error)
	}
}

// over says how it ended.
func (v *prefetchView) over(p prefetched, waited bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ticking != nil {
		v.ticking.Stop()
		v.ticking = nil
	}
	v.hide()
	if v.json {
		e := json.NewEncoder(v.out)
		e.SetIndent("", "  ")
		return e.Encode(p)
	}
	what := "have all their images"
	if !waited {
		what = "were asked to get their images"
	}
	_, err := fmt.Fprintf(v.out, "%d of %d nodes %s\n", len(p.Nodes)-p.Failed, v.total, what)
	return err
}
