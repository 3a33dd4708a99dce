package unitfile

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// SocketAddress is an address of ListenStream= and its like.
type SocketAddress struct {
	// Path of a socket in the file system, or a name with "@" in front in the
	// abstract space; empty for the others.
	Path string
	// IP and Port; Interface is the zone of an IPv6 address, by name or number.
	IP        netip.Addr
	Port      uint16
	Interface string
	// VSock is set for "vsock:CID:PORT", with these two.
	VSock          bool
	CID, VSockPort uint32
}

// vsockAny is VMADDR_CID_ANY.
const vsockAny = 1<<32 - 1

// ParseSocketAddress reads an address (systemd.socket(5), ListenStream=). A port
// alone is all addresses of the host: of IPv6, or of IPv4 where there is no IPv6.
func ParseSocketAddress(s string, ipv6 bool) (SocketAddress, error) {
	const what = "the address of a socket"
	rest, vsock := strings.CutPrefix(s, "vsock:")
	switch {
	case s == "":
		return SocketAddress{}, invalid(what, s)
	case s[0] == '/':
		// 108 bytes, the last of them zero.
		if strings.HasSuffix(s, "/") || len(s) > 107 || path.Clean(s) == "/" {
			return SocketAddress{}, invalid(what, s)
		}
		return SocketAddress{Path: s}, nil
	case s[0] == '@':
		if len(s) < 2 || len(s) > 108 {
			return SocketAddress{}, invalid(what, s)
		}
		return SocketAddress{Path: s}, nil
	case vsock:
		return parseVSock(s, rest)
	case strings.Trim(s, "0123456789") == "":
		port, err := parsePort(s)
		ip := netip.IPv6Unspecified()
		if !ipv6 {
			ip = netip.IPv4Unspecified()
		}
		return SocketAddress{IP: ip, Port: port}, err
	}
	return parseInternet(s)
}

func parsePort(s string) (uint16, error) {
	n, err := ParseUint(s, 16)
	if err == nil && (n == 0 || s[0] < '0' || s[0] > '9') {
		err = invalid("a port", s)
	}
	return uint16(n), err
}

func parseVSock(s, rest string) (SocketAddress, error) {
	cidText, portText, ok := strings.Cut(rest, ":")
	a := SocketAddress{VSock: true, CID: vsockAny}
	if !ok || portText == "" {
		return SocketAddress{}, invalid("the address of a socket", s)
	}
	if cidText != "" {
		n, err := ParseUint(cidText, 32)
		if err != nil {
			return SocketAddress{}, err
		}
		a.CID = uint32(n)
	}
	n, err := ParseUint(portText, 32)
	a.VSockPort = uint32(n)
	return a, err
}

// parseInternet reads "1.2.3.4:80" and "[::1]:80%eth0".
func parseInternet(s string) (SocketAddress, error) {
	const what = "the address of a socket"
	var a SocketAddress
	var ipText, portText string
	if rest, ok := strings.CutPrefix(s, "["); ok {
		if ipText, portText, ok = strings.Cut(rest, "]:"); !ok {
			return a, invalid(what, s)
		}
		if i := strings.IndexByte(portText, '%'); i >= 0 {
			a.Interface, portText = portText[i+1:], portText[:i]
			if !validInterface(a.Interface) {
				return SocketAddress{}, invalid(what, s)
			}
		}
	} else {
		i := strings.LastIndexByte(s, ':')
		if i < 0 {
			return a, invalid(what, s)
		}
		ipText, portText = s[:i], s[i+1:]
	}
	ip, err := netip.ParseAddr(ipText)
	if err != nil || ip.Zone() != "" || ip.Is4() == strings.HasPrefix(s, "[") {
		return SocketAddress{}, invalid(what, s)
	}
	a.IP = ip
	if portText == "" {
		return SocketAddress{}, invalid(what, s)
	}
	a.Port, err = parsePort(portText)
	return a, err
}

// validInterface says whether the text can be the name or number of a network
// interface: 15 bytes at most.
func validInterface(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || r == ':' || r == '/' || r == '%'
	})
}

// String prints the normalised form.
func (a SocketAddress) String() string {
	switch {
	case a.Path != "":
		return a.Path
	case a.VSock:
		cid := ""
		if a.CID != vsockAny {
			cid = strconv.FormatUint(uint64(a.CID), 10)
		}
		return fmt.Sprintf("vsock:%s:%d", cid, a.VSockPort)
	}
	s := netip.AddrPortFrom(a.IP, a.Port).String()
	if a.Interface != "" {
		s += "%" + a.Interface
	}
	return s
}

// Family is the address family's name.
func (a SocketAddress) Family() string {
	switch {
	case a.Path != "":
		return "AF_UNIX"
	case a.VSock:
		return "AF_VSOCK"
	case a.IP.Is4():
		return "AF_INET"
	}
	return "AF_INET6"
}
