// Command collector receives the lines that the log collectors on the nodes send
// and appends them to one file per node.
//
//	POST /v1/lines   one JSON document a line: {"node","file","time","line"};
//	                 204 when all of them are on disk
//	GET  /stats      what came from each node, as JSON
//	GET  /healthz    200
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "127.0.0.1:9880", "`address` to listen on")
	dir := flag.String("dir", "", "`directory` for the lines, one file per node")
	flag.Parse()
	if *dir == "" || flag.NArg() > 0 {
		log.Fatal("collector: name the directory for the lines with --dir; it takes no other arguments")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *listen, *dir); err != nil {
		log.Fatalf("collector: %v", err)
	}
}

func run(ctx context.Context, listen, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot keep lines: %w", err)
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	c := &collector{dir: dir, nodes: map[string]*stats{}}
	server := &http.Server{Handler: c.routes(), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	log.Printf("receiving at http://%s, keeping lines in %s", l.Addr(), dir)
	notifyReady()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	// Requests in flight are answered, so that nobody sends their lines again.
	last, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return server.Shutdown(last)
}

// line is one line of a log file somewhere in the fleet.
type line struct {
	Node string    `json:"node"`
	File string    `json:"file"`
	Time time.Time `json:"time"`
	Line string    `json:"line"`
}

// stats is what came from one node.
type stats struct {
	Lines int64          `json:"lines"`
	Bytes int64          `json:"bytes"`
	Last  time.Time      `json:"last"`
	Files map[string]int `json:"files"`
}

type collector struct {
	dir   string
	mu    sync.Mutex
	nodes map[string]*stats
}

func (c *collector) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/lines", c.receive)
	mux.HandleFunc("GET /stats", c.stats)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	return mux
}

// A node's name becomes a file's name; nothing else may.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]{0,252}$`)

// maxBody bounds one request; the senders' batches are far smaller.
const maxBody = 16 << 20

func (c *collector) receive(w http.ResponseWriter, r *http.Request) {
	byNode := map[string][]line{}
	for d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)); ; {
		var l line
		err := d.Decode(&l)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && !nodeName.MatchString(l.Node) {
			err = fmt.Errorf("%q is not a node's name", l.Node)
		}
		if err != nil {
			http.Error(w, "cannot read the lines: "+err.Error(), http.StatusBadRequest)
			return
		}
		byNode[l.Node] = append(byNode[l.Node], l)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for node, lines := range byNode {
		if err := c.keep(node, lines); err != nil {
			log.Printf("cannot keep lines of %s: %v", node, err)
			http.Error(w, "cannot keep the lines: "+err.Error(), http.StatusInsufficientStorage)
			return
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

// keep appends a node's lines to its file, all with one write.
func (c *collector) keep(node string, lines []line) error {
	var text []byte
	for _, l := range lines {
		text = fmt.Appendf(text, "%s %s %s\n", l.Time.Format(time.RFC3339Nano), l.File, l.Line)
	}
	file, err := os.OpenFile(filepath.Join(c.dir, node+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if _, err = file.Write(text); err != nil {
		_ = file.Close()
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	s := c.nodes[node]
	if s == nil {
		s = &stats{Files: map[string]int{}}
		c.nodes[node] = s
	}
	s.Lines += int64(len(lines))
	s.Bytes += int64(len(text))
	s.Last = time.Now()
	for _, l := range lines {
		s.Files[l.File]++
	}
	return nil
}

func (c *collector) stats(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(map[string]any{"nodes": c.nodes})
}

// notifyReady is sd_notify(3): it tells the service manager that we listen.
func notifyReady() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		log.Printf("cannot tell the service manager that we are ready: %v", err)
		return
	}
	defer conn.Close()
	_, _ = conn.Write([]byte("READY=1"))
}
