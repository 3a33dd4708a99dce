package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

func TestChooseMovesOnFromTakenNetworks(t *testing.T) {
	for _, tt := range []struct {
		id    string
		taken []string
		want  string
	}{
		{"0102aabb", nil, "10.1.2.0/24"},
		{"0102aabb", []string{"192.0.2.0/24"}, "10.1.2.0/24"},
		{"0102aabb", []string{"10.1.2.128/25"}, "10.1.3.0/24"},
		{"0102aabb", []string{"10.1.0.0/16"}, "10.2.0.0/24"},
		{"ffffaabb", []string{"10.255.255.0/24"}, "10.0.0.0/24"},
		{"0102aabb", []string{"10.0.0.0/8"}, ""},
	} {
		var taken []netip.Prefix
		for _, s := range tt.taken {
			taken = append(taken, netip.MustParsePrefix(s))
		}
		got, err := choose(tt.id, taken)
		if tt.want == "" {
			if err == nil {
				t.Errorf("choose(%s, %v) = %s, want an error", tt.id, tt.taken, got)
			}
			continue
		}
		if err != nil || got.String() != tt.want {
			t.Errorf("choose(%s, %v) = %s, %v, want %s", tt.id, tt.taken, got, err, tt.want)
		}
	}
}

// network makes a network for the test, or skips where the machine cannot.
func network(t *testing.T) Network {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	id := fmt.Sprintf("%08x", uint32(os.Getpid())<<8|0x7e)
	subnet, err := Choose(id)
	if err != nil {
		t.Fatal(err)
	}
	n := Network{ID: id, Subnet: subnet}
	t.Cleanup(func() {
		if err := n.Remove(); err != nil {
			t.Error(err)
		}
		if left := n.Left(); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	if err := n.EnsureHub(); err != nil {
		t.Skipf("this machine gives no network namespaces: %v", err)
	}
	return n
}

func TestNetworkIsReachableAndMadeOnce(t *testing.T) {
	n := network(t)
	for range 2 { // the second round finds everything in place
		if err := n.EnsureHub(); err != nil {
			t.Fatal(err)
		}
		for i, node := range []string{"n1", "n2"} {
			if err := n.EnsureNode(node, i+1); err != nil {
				t.Fatal(err)
			}
		}
	}
	reach := func(what, from string, to netip.Addr) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		dial := func() error {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(to, 9100).String())
			if err != nil {
				return err
			}
			return c.Close()
		}
		var err error
		if from == "" {
			err = dial()
		} else {
			err = Within(from, dial)
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i, node := range []string{"n1", "n2"} {
		if err := Within(n.NodePath(node), func() error {
			l, err := net.Listen("tcp", netip.AddrPortFrom(n.NodeAddr(i+1), 9100).String())
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = l.Close() })
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	reach("host to n1", "", n.NodeAddr(1))
	reach("n1 to n2", n.NodePath("n1"), n.NodeAddr(2))
	reach("hub to n2", n.HubPath(), n.NodeAddr(2))

	if err := n.RemoveNode("n1"); err != nil {
		t.Fatal(err)
	}
	if err := n.EnsureNode("n1", 1); err != nil {
		t.Fatalf("again after its removal: %v", err)
	}
}

func TestRemoveOfNothingIsNoError(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	n := Network{ID: "00000000", Subnet: netip.MustParsePrefix("10.0.0.0/24")}
	if err := n.Remove(); err != nil {
		t.Error(err)
	}
	if err := n.RemoveNode("n1"); err != nil {
		t.Error(err)
	}
}
