// Package netns gives each local node of a fleet a network of its own: a network
// namespace with one address, joined to the others and to the host through a
// bridge in one more namespace, the hub.
//
//	host           hub namespace                node namespaces
//	lg-<id> ────── host0 ┐
//	10.X.Y.254     br0 10.X.Y.1 ── n1 ───────── eth0 10.X.Y.11
//	                     └──────── n2 ───────── eth0 10.X.Y.12
//
// Everything is named after the fleet, is made only where it is missing, and
// goes with the namespaces. Nothing here listens, and no packet leaves the
// machine unless the host itself forwards it.
package netns

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// MaxNodes is how many nodes have an address in one fleet's /24.
const MaxNodes = 243

// runDir is where ip-netns(8) looks for namespaces by name.
const runDir = "/run/netns"

const (
	bridgeName   = "br0"
	hostPortName = "host0" // the hub's end of the host's cable
	nodeLinkName = "eth0"
)

// Network is the network of one fleet. Its methods make and remove what is
// missing or left, so that each may be called again after a failure.
type Network struct {
	// ID tells the fleets of one machine apart; up to 11 characters, since
	// the host's interface is named after it.
	ID string
	// Subnet is the fleet's /24.
	Subnet netip.Prefix
}

// HubName is the hub's namespace.
func (n Network) HubName() string { return "legion-" + n.ID + "-hub" }

// HubPath is the file of the hub's namespace.
func (n Network) HubPath() string { return filepath.Join(runDir, n.HubName()) }

// NodeName is the namespace of a node.
func (n Network) NodeName(node string) string { return "legion-" + n.ID + "-n-" + node }

// NodePath is the file of a node's namespace.
func (n Network) NodePath(node string) string { return filepath.Join(runDir, n.NodeName(node)) }

// HostLink is the host's interface into the hub.
func (n Network) HostLink() string { return "lg-" + n.ID }

// HubAddr is the hub's address, where the agents find the server.
func (n Network) HubAddr() netip.Addr { return n.addr(1) }

// HostAddr is the host's own address in the fleet's network.
func (n Network) HostAddr() netip.Addr { return n.addr(254) }

// NodeAddr is the address of node number index, from 1 to MaxNodes.
func (n Network) NodeAddr(index int) netip.Addr { return n.addr(10 + index) }

func (n Network) addr(last int) netip.Addr {
	a := n.Subnet.Addr().As4()
	a[3] = byte(last)
	return netip.AddrFrom4(a)
}

// Choose finds a /24 below 10.0.0.0/8 that no route of the host overlaps. The
// search starts at a place that id decides, so that a fleet finds its own again.
func Choose(id string) (netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("cannot choose a network: list the host's routes: %w", err)
	}
	var taken []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		ip, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		if ok && bits > 0 {
			taken = append(taken, netip.PrefixFrom(ip, bits))
		}
	}
	return choose(id, taken)
}

func choose(id string, taken []netip.Prefix) (netip.Prefix, error) {
	// FNV would do as well; the first two bytes of the id are a hash already.
	start := 0
	if b, err := hex.DecodeString(id); err == nil && len(b) >= 2 {
		start = int(b[0])<<8 | int(b[1])
	}
	for i := range 1 << 16 {
		k := (start + i) & 0xffff
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k >> 8), byte(k), 0}), 24)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("cannot choose a network: the host routes all of 10.0.0.0/8 elsewhere")
}

// EnsureHub makes the hub's namespace, its bridge and the host's cable to it.
func (n Network) EnsureHub() error {
	if err := n.ensureHub(); err != nil {
		return fmt.Errorf("cannot make the fleet's network %s: %w", n.HubName(), err)
	}
	return nil
}

func (n Network) ensureHub() error {
	hub, err := ensureNamespace(n.HubName())
	if err != nil {
		return err
	}
	defer hub.close()
	bridge, err := hub.LinkByName(bridgeName)
	if err != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = bridgeName
		if err := hub.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add bridge: %w", err)
		}
		if bridge, err = hub.LinkByName(bridgeName); err != nil {
			return fmt.Errorf("find bridge: %w", err)
		}
	}
	if err := hub.address(bridge, n.HubAddr()); err != nil {
		return err
	}
	if err := n.ensureHostCable(hub, bridge); err != nil {
		return fmt.Errorf("the host's cable: %w", err)
	}
	if err := hub.defaultRoute(bridge, n.HostAddr()); err != nil {
		return err
	}
	// Lets nodes reach beyond this machine where the host forwards and
	// translates for them; where it does not, nothing changes.
	_ = Within(n.HubPath(), func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
	return nil
}

// ensureHostCable connects the host's namespace with the hub's bridge.
func (n Network) ensureHostCable(hub *handle, bridge netlink.Link) error {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	here := &handle{Handle: host, ns: netns.None()}
	defer here.close()
	port, err := hub.LinkByName(hostPortName)
	if err != nil {
		// A cable without its other end is of an earlier hub.
		if old, err := host.LinkByName(n.HostLink()); err == nil {
			if err := host.LinkDel(old); err != nil {
				return fmt.Errorf("remove the old %s: %w", n.HostLink(), err)
			}
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = n.HostLink()
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: hostPortName, PeerNamespace: netlink.NsFd(hub.ns)}
		if err := host.LinkAdd(veth); err != nil {
			return fmt.Errorf("add %s: %w", n.HostLink(), err)
		}
		if port, err = hub.LinkByName(hostPortName); err != nil {
			return err
		}
	}
	if err := hub.LinkSetMaster(port, bridge); err != nil {
		return err
	}
	if err := hub.LinkSetUp(port); err != nil {
		return err
	}
	link, err := host.LinkByName(n.HostLink())
	if err != nil {
		return err
	}
	return here.address(link, n.HostAddr())
}

// EnsureNode makes the namespace of a node and its cable to the hub; index is
// the node's number, which gives it its address.
func (n Network) EnsureNode(node string, index int) error {
	if index < 1 || index > MaxNodes {
		return fmt.Errorf("cannot make a network for node %s: a fleet has addresses for %d local nodes, and this is number %d", node, MaxNodes, index)
	}
	if err := n.ensureNode(node, index); err != nil {
		return fmt.Errorf("cannot make a network for node %s: %w", node, err)
	}
	return nil
}

func (n Network) ensureNode(node string, index int) error {
	hub, err := open(n.HubName())
	if err != nil {
		return err
	}
	defer hub.close()
	mine, err := ensureNamespace(n.NodeName(node))
	if err != nil {
		return err
	}
	defer mine.close()
	link, err := mine.LinkByName(nodeLinkName)
	if err != nil {
		if link, err = cable(hub, mine, fmt.Sprintf("n%d", index)); err != nil {
			return err
		}
	}
	port, err := hub.LinkByName(fmt.Sprintf("n%d", index))
	if err != nil {
		return fmt.Errorf("find its cable's end in the hub: %w", err)
	}
	bridge, err := hub.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find the hub's bridge: %w", err)
	}
	if err := hub.LinkSetMaster(port, bridge); err != nil {
		return err
	}
	if err := hub.LinkSetUp(port); err != nil {
		return err
	}
	if err := mine.address(link, n.NodeAddr(index)); err != nil {
		return err
	}
	return mine.defaultRoute(link, n.HubAddr())
}

// cable adds a veth pair: port in the hub, eth0 in the node.
func cable(hub, mine *handle, port string) (netlink.Link, error) {
	if old, err := hub.LinkByName(port); err == nil {
		if err := hub.LinkDel(old); err != nil {
			return nil, fmt.Errorf("remove the old cable %s: %w", port, err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: nodeLinkName, PeerNamespace: netlink.NsFd(mine.ns)}
	if err := hub.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("add the cable %s: %w", port, err)
	}
	return mine.LinkByName(nodeLinkName)
}

// RemoveNode removes a node's namespace and with it the cable. Processes that
// are still in it keep it alive, nameless, until they end.
func (n Network) RemoveNode(node string) error {
	if err := n.removeNamespace(n.NodeName(node)); err != nil {
		return fmt.Errorf("cannot remove the network of node %s: %w", node, err)
	}
	return nil
}

// Remove removes the whole network: the nodes', the hub's and the host's cable.
func (n Network) Remove() error {
	var errs []error
	if host, err := netlink.NewHandle(unix.NETLINK_ROUTE); err == nil {
		if link, err := host.LinkByName(n.HostLink()); err == nil {
			errs = append(errs, host.LinkDel(link))
		}
		host.Close()
	}
	names, err := n.names()
	errs = append(errs, err)
	for _, name := range names {
		errs = append(errs, n.removeNamespace(name))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot remove the fleet's network %s: %w", n.HubName(), err)
	}
	return nil
}

// Left names what there still is of the network.
func (n Network) Left() []string {
	names, _ := n.names()
	var left []string
	for _, name := range names {
		left = append(left, "network namespace "+name)
	}
	if _, err := net.InterfaceByName(n.HostLink()); err == nil {
		left = append(left, "network interface "+n.HostLink())
	}
	return left
}

func (n Network) names() ([]string, error) {
	entries, err := os.ReadDir(runDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Name() == n.HubName() || strings.HasPrefix(e.Name(), n.NodeName("")) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (n Network) removeNamespace(name string) error {
	// The cables go first: the kernel ends a namespace later, on its own time.
	if h, err := open(name); err == nil {
		for _, l := range []string{nodeLinkName, hostPortName} {
			if link, err := h.LinkByName(l); err == nil {
				_ = h.LinkDel(link)
			}
		}
		h.close()
	}
	path := filepath.Join(runDir, name)
	// EINVAL: not a mount; a file that an earlier boot left behind.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// handle speaks netlink inside one namespace.
type handle struct {
	*netlink.Handle
	ns netns.NsHandle
}

func (h *handle) close() {
	h.Close()
	if h.ns.IsOpen() {
		_ = h.ns.Close()
	}
}

func open(name string) (*handle, error) {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return nil, fmt.Errorf("open namespace %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		_ = ns.Close()
		return nil, fmt.Errorf("enter namespace %s: %w", name, err)
	}
	return &handle{h, ns}, nil
}

// ensureNamespace opens the named namespace, made if need be, with lo up.
func ensureNamespace(name string) (*handle, error) {
	path := filepath.Join(runDir, name)
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	if err == nil && st.Type != unix.NSFS_MAGIC {
		// A file of an earlier boot: the namespace it stood for is gone.
		err = os.Remove(path)
		if err == nil {
			err = fs.ErrNotExist
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = create(name)
	}
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	h, err := open(name)
	if err != nil {
		return nil, err
	}
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("bring up lo in %s: %w", name, err)
	}
	return h, nil
}

// create makes a namespace and gives it a name. The thread that does so is in
// the new namespace afterwards and must not be used again.
func create(name string) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.NewNamed(name)
		if err == nil {
			_ = ns.Close()
		}
		done <- err
	}()
	return <-done
}

// Within runs f on a thread that is in the network namespace of that path: the
// sockets that f opens stay there.
func Within(path string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			err = netns.Set(ns)
			_ = ns.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// address gives link an address in the fleet's /24 and brings it up.
func (h *handle) address(link netlink.Link, a netip.Addr) error {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := h.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("give %s the address %s: %w", link.Attrs().Name, a, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", link.Attrs().Name, err)
	}
	return nil
}

func (h *handle) defaultRoute(link netlink.Link, via netip.Addr) error {
	everywhere := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everywhere, Gw: via.AsSlice()}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("route through %s: %w", via, err)
	}
	return nil
}
