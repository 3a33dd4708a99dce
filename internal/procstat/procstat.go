// Package procstat reads /proc/PID/stat (proc(5)).
package procstat

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Field is the number of a field, as proc(5) counts them.
type Field int

// The fields that Legion looks at.
const (
	Parent     Field = 4
	Group      Field = 5
	Session    Field = 6
	UserTime   Field = 14 // in ticks, as SystemTime and StartTime
	SystemTime Field = 15
	Threads    Field = 20
	StartTime  Field = 22 // since the machine booted; with the process ID it names a process
	Size       Field = 23 // of the address space in bytes; 0 for one that is over
	Resident   Field = 24 // in pages
	EnvEnd     Field = 51 // 0 in the middle of exec
	ExitCode   Field = 52 // in wait(2)'s form, for those who may trace it
)

const (
	state = 3
	least = StartTime // every kernel has those up to it
)

// Stat is what there is on a process at one moment.
type Stat struct {
	state   byte
	told    int // so many fields from state on
	numbers [ExitCode + 1]int
}

// buffers are longer than any such line.
var buffers = sync.Pool{New: func() any { return new([2048]byte) }}

// Read reads what there is on a process.
func Read(pid int) (Stat, error) { return ReadFile("/proc/" + strconv.Itoa(pid) + "/stat") }

// ReadFile is Read for a file of that form. All processes are read at the end of
// one where there are no cgroups: it takes three system calls.
func ReadFile(name string) (Stat, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stat{}, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	buf := buffers.Get().(*[2048]byte)
	defer buffers.Put(buf)
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return Stat{}, &os.PathError{Op: "read", Path: name, Err: err}
	}
	s, ok := parse(buf[:n])
	if !ok {
		return Stat{}, fmt.Errorf("%s is not understood", name)
	}
	return s, nil
}

func parse(line []byte) (Stat, bool) {
	// The name of the command may hold blanks and parentheses; the last one ends it.
	i := bytes.LastIndexByte(line, ')')
	var s Stat
	for field := range bytes.FieldsSeq(line[i+1:]) {
		at := state + s.told
		if at == state {
			s.state = field[0]
		} else if at < len(s.numbers) {
			s.numbers[at] = number(field)
		}
		s.told++
	}
	return s, i >= 0 && s.Has(least)
}

// number is that of a field without a sign, else 0; Legion looks at none that may
// have one.
func number(digits []byte) int {
	var n uint64
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	return int(n)
}

// State is the letter of the process's state: Z for one that has ended and is not
// collected.
func (s Stat) State() byte { return s.state }

// Over says whether the process has ended.
func (s Stat) Over() bool { return s.State() == 'Z' || s.State() == 'X' }

// Has says whether this kernel tells the field.
func (s Stat) Has(f Field) bool { return s.told > int(f)-state }

// Number is the value of a field; 0 where it is not told.
func (s Stat) Number(f Field) int { return s.numbers[f] }
