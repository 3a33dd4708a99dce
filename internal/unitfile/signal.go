package unitfile

import (
	"strconv"
	"strings"
)

// The real-time signals as programs see them (Linux with glibc), and the
// highest signal.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// signalNames are Linux' signals of all common architectures, by number from 1.
var signalNames = []string{
	"HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1",
	"SEGV", "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP",
	"TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH",
	"IO", "PWR", "SYS",
}

// ParseSignal reads a signal's number or name, with or without SIG.
func ParseSignal(s string) (int, error) {
	if n, err := ParseInt(s, 32); err == nil {
		if n < 1 || n > sigRTMax {
			return 0, outOfRange("signal", s)
		}
		return int(n), nil
	}
	name := strings.TrimPrefix(s, "SIG")
	for i, known := range signalNames {
		if name == known {
			return i + 1, nil
		}
	}
	switch name {
	case "RTMIN":
		return sigRTMin, nil
	case "RTMAX":
		return sigRTMax, nil
	}
	for prefix, from := range map[string]int{"RTMIN+": sigRTMin, "RTMAX-": -sigRTMax} {
		offset, ok := strings.CutPrefix(name, prefix)
		if !ok || offset == "" || strings.Trim(offset, "0123456789") != "" {
			continue
		}
		n, err := strconv.Atoi(offset)
		if err != nil || n > sigRTMax-sigRTMin {
			return 0, outOfRange("signal", s)
		}
		return max(from, -from) + n*sign(from), nil
	}
	return 0, invalid("a signal", s)
}

func sign(n int) int {
	if n < 0 {
		return -1
	}
	return 1
}

// SignalName gives a signal's name with SIG.
func SignalName(n int) string {
	switch {
	case n >= 1 && n <= len(signalNames):
		return "SIG" + signalNames[n-1]
	case n == sigRTMin:
		return "SIGRTMIN"
	case n == sigRTMax:
		return "SIGRTMAX"
	case n > sigRTMin && n < sigRTMax:
		return "SIGRTMIN+" + strconv.Itoa(n-sigRTMin)
	default:
		return strconv.Itoa(n)
	}
}
