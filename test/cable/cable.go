// Package cable is a network cable that can be cut, slow and bad: what tc's netem
// does, for kernels that are built without it. It is put between a port and its
// bridge, where it hands on each frame, later or not at all.
//
//	before   br0 ── n1 ────────── eth0 of the node
//	after    br0 ── tap ~ Cable ~ n1 ── eth0 of the node
package cable

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// State is what the cable does to a frame, in either direction.
type State struct {
	// Cut: no frame arrives.
	Cut bool
	// Loss is the share of the frames that are lost, 0 to 1.
	Loss float64
	// Delay is how much later a frame arrives.
	Delay time.Duration
}

const (
	// frameSize is the largest frame that the kernel hands over unsegmented,
	// with the header that says how to segment it.
	frameSize = 1<<16 + 256
	// queued bounds the frames under way, as netem's limit does.
	queued = 1000
)

// Cable hands frames on between a port and a bridge.
type Cable struct {
	state     atomic.Pointer[State]
	tap, port *os.File
	done      chan struct{}
	parts     sync.WaitGroup
}

// Insert takes the link port of the namespace at path off the bridge it is on
// and puts a cable between the two. The cable ends with Close or the process;
// the port stays off the bridge.
func Insert(path, port string) (*Cable, error) {
	c := &Cable{done: make(chan struct{})}
	c.Set(State{})
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in other namespaces and ends here
		made <- c.connect(path, port)
	}()
	if err := <-made; err != nil {
		c.closeFiles()
		return nil, fmt.Errorf("cannot put a cable between %s and its bridge in %s: %w", port, path, err)
	}
	c.parts.Go(func() { c.carry(c.tap, c.port) })
	c.parts.Go(func() { c.carry(c.port, c.tap) })
	return c, nil
}

// Set changes what becomes of the frames from now on.
func (c *Cable) Set(s State) { c.state.Store(&s) }

// Close ends the cable.
func (c *Cable) Close() {
	close(c.done)
	c.closeFiles()
	c.parts.Wait()
}

func (c *Cable) closeFiles() {
	for _, f := range []*os.File{c.tap, c.port} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// connect opens both ends. The port moves to a namespace without a name and
// without addresses, where no kernel answers in its own right to what it hears.
func (c *Cable) connect(path, port string) error {
	hubNS, err := netns.GetFromPath(path)
	if err != nil {
		return err
	}
	defer hubNS.Close()
	aside, err := netns.New() // and this thread is in it
	if err != nil {
		return fmt.Errorf("make a namespace: %w", err)
	}
	defer aside.Close()
	hub, err := netlink.NewHandleAt(hubNS, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer hub.Close()
	link, err := hub.LinkByName(port)
	if err != nil {
		return err
	}
	bridge := link.Attrs().MasterIndex
	if bridge == 0 {
		return errors.New("it is on no bridge")
	}
	if err := hub.LinkSetNsFd(link, int(aside)); err != nil {
		return fmt.Errorf("take it aside: %w", err)
	}
	if c.port, err = openPort(aside, port); err != nil {
		return fmt.Errorf("open it: %w", err)
	}
	if err := netns.Set(hubNS); err != nil {
		return err
	}
	if c.tap, err = openTap(port + "-tap"); err != nil {
		return fmt.Errorf("open a tap: %w", err)
	}
	tap, err := hub.LinkByName(port + "-tap")
	if err != nil {
		return err
	}
	if err := hub.LinkSetMasterByIndex(tap, bridge); err != nil {
		return err
	}
	return hub.LinkSetUp(tap)
}

// openPort opens the link for frames of all kinds, with the header of virtio
// before each, by which a frame may be larger than the link's and its checksum
// be left to the receiver.
func openPort(ns netns.NsHandle, name string) (*os.File, error) {
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, err
	}
	// Of no protocol until it is bound: else it would hear other links.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	for _, option := range []int{unix.PACKET_VNET_HDR, unix.PACKET_IGNORE_OUTGOING} {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_PACKET, option, 1)
		}
	}
	if err == nil {
		all := uint16(unix.ETH_P_ALL)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8, Ifindex: link.Attrs().Index})
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// openTap makes a tap with the same header in the namespace of this thread.
func openTap(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// frame is one under way.
type frame struct {
	due  time.Time
	data []byte
}

// carry hands frames on in one direction until the cable ends.
func (c *Cable) carry(from, to *os.File) {
	under := make(chan frame, queued)
	var sender sync.WaitGroup
	sender.Go(func() { c.send(under, to) })
	defer sender.Wait()
	defer close(under)
	buf := make([]byte, frameSize)
	for {
		n, err := from.Read(buf)
		if err != nil && c.over() {
			return
		}
		// Else the link is down for a moment, or the frame was no good.
		s := c.state.Load()
		if err != nil || s.Cut || s.Loss > 0 && rand.Float64() < s.Loss {
			continue
		}
		select {
		case under <- frame{time.Now().Add(s.Delay), append([]byte(nil), buf[:n]...)}:
		default: // as a full queue does
		}
	}
}

func (c *Cable) send(under <-chan frame, to *os.File) {
	for f := range under {
		if wait := time.Until(f.due); wait > 0 {
			select {
			case <-c.done:
				continue
			case <-time.After(wait):
			}
		}
		_, _ = to.Write(f.data) // what a link does not take is lost
	}
}

func (c *Cable) over() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
