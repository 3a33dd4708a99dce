// Package fleet runs a whole fleet on one machine: it writes the unit files of a
// control plane and of N local nodes into a directory, starts one legiond on
// them, waits until all is ready, and takes all of it down again.
//
// The directory DIR is the fleet; nothing of it lives elsewhere but, as root,
// its network namespaces and its cgroup, which are named after it:
//
//	DIR/fleet.json         what was asked for: port, network, nodes (State)
//	DIR/units/             the unit files that the fleet's legiond runs
//	DIR/host.sock          its socket; state/, log/ and run/ are its own
//	DIR/legiond.log        its own output
//	DIR/server/            etcd's data and the certificates of legion-server
//	DIR/admin.kubeconfig   for kubectl and every other client
//	DIR/nodes/NAME/        one node: the same layout for the node's legiond
//	DIR/nodes/NAME/agent/  the agent's certificate
//	DIR/collector/         what the nodes' log collectors have sent
package fleet

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/netns"
)

// Fleet is the fleet of one directory.
type Fleet struct {
	// Dir is absolute.
	Dir string
	// Bin holds the programs.
	Bin string
	// Out takes the tables, Progress says what is being waited for.
	Out      io.Writer
	Progress *Progress
	// Root: each node gets a network of its own.
	Root bool
	// Version is this program's.
	Version string

	state State
}

// State is what DIR/fleet.json keeps: what the fleet is made of. Everything
// else follows from it.
type State struct {
	// Port is where the API listens.
	Port int `json:"port"`
	// Subnet is the /24 of the nodes' addresses.
	Subnet netip.Prefix `json:"subnet"`
	// Namespaced: each node has a network namespace of its own. Else they share
	// the host's network, and Subnet is part of its loopback.
	Namespaced bool `json:"namespaced"`
	// Cgroup is the directory of the fleet's cgroup, "" for none.
	Cgroup string `json:"cgroup,omitempty"`
	Nodes  []Node `json:"nodes"`
}

// Node is one local node.
type Node struct {
	Name string `json:"name"`
	// Index gives the node its address; numbers of removed nodes are used again.
	Index int `json:"index"`
}

// Open reads the fleet of a directory, which need not exist yet.
func (f *Fleet) open() error {
	data, err := os.ReadFile(f.path("fleet.json"))
	if errors.Is(err, fs.ErrNotExist) {
		f.state = State{}
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the fleet: %w", err)
	}
	if err := json.Unmarshal(data, &f.state); err != nil {
		return fmt.Errorf("cannot read the fleet: %s: %w; `legion down --purge --dir %s` removes it", f.path("fleet.json"), err, f.Dir)
	}
	return nil
}

// exists says whether there is a fleet in the directory, running or not.
func (f *Fleet) exists() bool {
	_, err := os.Stat(f.path("fleet.json"))
	return err == nil
}

func (f *Fleet) save() error {
	data, err := json.MarshalIndent(f.state, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(f.path("fleet.json"), append(data, '\n'), 0o644)
}

func (f *Fleet) path(parts ...string) string {
	return filepath.Join(append([]string{f.Dir}, parts...)...)
}

func (f *Fleet) program(name string) string { return filepath.Join(f.Bin, name) }

// socket is that of the fleet's own legiond.
func (f *Fleet) socket() string { return f.path("host.sock") }

// Kubeconfig is the file for clients of the fleet's API.
func (f *Fleet) Kubeconfig() string { return f.path("admin.kubeconfig") }

func (f *Fleet) id() string { return ID(f.Dir) }

// ID tells the fleet of an absolute directory from others on the machine: eight
// hex digits of the hash of its path.
func ID(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:4])
}

func (f *Fleet) network() netns.Network {
	return netns.Network{ID: f.id(), Subnet: f.state.Subnet}
}

// nodeAddr is the address of a node: in its own network, or of the loopback.
func (f *Fleet) nodeAddr(n Node) netip.Addr { return f.network().NodeAddr(n.Index) }

// centre is the first address of the nodes' network, where log collectors find
// the collector and, in a network of their own, agents the server.
func (f *Fleet) centre() netip.Addr { return f.network().HubAddr() }

// serverURL is where the agents find the server.
func (f *Fleet) serverURL() string {
	host := "127.0.0.1"
	if f.state.Namespaced {
		host = f.centre().String()
	}
	return "https://" + host + ":" + strconv.Itoa(f.state.Port)
}

func (f *Fleet) node(name string) (Node, bool) {
	i := slices.IndexFunc(f.state.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		return Node{}, false
	}
	return f.state.Nodes[i], true
}

// addNode gives a new node the lowest free number.
func (f *Fleet) addNode(name string) (Node, error) {
	if err := checkNodeName(name); err != nil {
		return Node{}, err
	}
	n := Node{Name: name, Index: 1}
	for slices.ContainsFunc(f.state.Nodes, func(o Node) bool { return o.Index == n.Index }) {
		n.Index++
	}
	if n.Index > netns.MaxNodes {
		return Node{}, fmt.Errorf("cannot add node %s: a fleet on one machine has addresses for %d nodes", name, netns.MaxNodes)
	}
	f.state.Nodes = append(f.state.Nodes, n)
	return n, nil
}

// nodeName is what Kubernetes takes as a node's name, kept to one label so that
// it is also a file's name and a unit's.
var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func checkNodeName(name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("%q cannot be a node's name: use up to 63 lower-case letters, digits and -, beginning and ending with a letter or digit", name)
	}
	return nil
}

// lock takes the directory for one command that changes the fleet. The lock is
// let go when the process ends, however it ends.
func (f *Fleet) lock(verb string) (func(), error) {
	file, err := os.OpenFile(f.path("lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot run `legion %s` on the fleet in %s: %w", verb, f.Dir, err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(io.LimitReader(file, 200))
		_ = file.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		return nil, fmt.Errorf("cannot run `legion %s` on %s: `legion %s` is at work on it; wait for it to end, or end it", verb, f.Dir, strings.TrimSpace(string(holder)))
	}
	_ = file.Truncate(0)
	_, _ = fmt.Fprintf(file, "%s (pid %d)\n", verb, os.Getpid())
	return func() {
		_ = file.Truncate(0)
		_ = file.Close()
	}, nil
}

// makeDir makes DIR and says what is wrong with it in words of its own.
func (f *Fleet) makeDir() error {
	err := os.MkdirAll(f.Dir, 0o755)
	if err == nil {
		err = unix.Access(f.Dir, unix.W_OK|unix.X_OK)
	}
	if err != nil {
		return fmt.Errorf("cannot keep a fleet in %s: %w; name a directory of your own with --dir", f.Dir, err)
	}
	return nil
}

// writeFile replaces a file as a whole and tells whether its content is new.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// The name begins with a dot: legiond must not read it as a unit.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	if _, err = tmp.Write(data); err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}
