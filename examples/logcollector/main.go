// Command logcollector follows log files and ships their lines to a collector.
//
// It reads no faster than the collector takes lines: while that is away, the
// files themselves are the buffer. What was taken is written to a checkpoint, so
// that a restart goes on where it was; a line is sent twice only if the answer
// to it was lost. Rotation by renaming, by truncation and while it was not
// running are all followed.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type config struct {
	files      globs
	to         string
	checkpoint string
	node       string
	fromEnd    bool
	listen     string
}

// globs is a flag that may be given more than once.
type globs []string

func (g *globs) String() string     { return strings.Join(*g, " ") }
func (g *globs) Set(s string) error { *g = append(*g, s); return nil }

func main() {
	log.SetFlags(0)
	var c config
	var from string
	flag.Var(&c.files, "files", "`pattern` of files to follow, such as /var/log/*.log (repeatable)")
	flag.StringVar(&c.to, "to", "", "`URL` of the collector (default: port 9880 on the first address of $HOST_IP's network, where legion up runs one)")
	flag.StringVar(&c.checkpoint, "checkpoint", "", "`file` that remembers what was shipped")
	flag.StringVar(&c.node, "node", os.Getenv("NODE_NAME"), "`name` of this node (default $NODE_NAME)")
	flag.StringVar(&from, "from", "end", "where to begin with files that are there at the very first start: end or beginning")
	flag.StringVar(&c.listen, "listen", "", "`address` for /healthz (default none)")
	flag.Parse()
	c.fromEnd = from == "end"
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := c.complete(from)
	if err == nil {
		err = run(ctx, c)
	}
	if err != nil {
		log.Fatalf("logcollector: %v", err)
	}
}

// complete fills in the defaults and refuses what cannot work.
func (c *config) complete(from string) error {
	if from != "end" && from != "beginning" {
		return fmt.Errorf("--from is %q; it must be end or beginning", from)
	}
	if len(c.files) == 0 || c.checkpoint == "" {
		return fmt.Errorf("name the files to follow with --files and a file to remember them in with --checkpoint")
	}
	if c.node == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("this node has no name, set --node: %w", err)
		}
		c.node = name
	}
	if c.to == "" {
		ip, err := netip.ParseAddr(os.Getenv("HOST_IP"))
		if err != nil || !ip.Is4() {
			return fmt.Errorf("no collector: set --to to its URL")
		}
		a := ip.As4()
		a[3] = 1
		c.to = "http://" + netip.AddrPortFrom(netip.AddrFrom4(a), 9880).String()
	}
	c.to = strings.TrimSuffix(c.to, "/")
	return nil
}

func run(ctx context.Context, c config) error {
	f, err := newFollower(c)
	if err != nil {
		return err
	}
	defer f.close()
	if c.listen != "" {
		if err := serveHealth(ctx, c.listen, f.shipper); err != nil {
			return err
		}
	}
	log.Printf("following %s on %s, shipping to %s", c.files.String(), c.node, c.to)
	return f.run(ctx)
}

// serveHealth answers 200 while lines are taken, or there are none.
func serveHealth(ctx context.Context, address string, s *shipper) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("cannot listen for health checks: %w", err)
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if trouble := s.trouble.Load(); trouble != nil {
			http.Error(w, *trouble, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintf(w, "ok, %d lines shipped\n", s.shipped.Load())
	})}
	go func() { _ = server.Serve(l) }()
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return nil
}
