// Package procstat reads /proc/PID/stat (proc(5)).
package procstat

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
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
type Stat struct{ fields [][]byte }

// Read reads what there is on a process.
func Read(pid int) (Stat, error) { return ReadFile("/proc/" + strconv.Itoa(pid) + "/stat") }

// ReadFile is Read for a file of that form.
func ReadFile(name string) (Stat, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return Stat{}, err
	}
	// The name of the command may hold blanks and parentheses; the last one ends it.
	i := bytes.LastIndexByte(data, ')')
	s := Stat{bytes.Fields(data[i+1:])}
	if i < 0 || !s.Has(least) {
		return Stat{}, fmt.Errorf("%s is not understood", name)
	}
	return s, nil
}

// State is the letter of the process's state: Z for one that has ended and is not
// collected.
func (s Stat) State() byte { return s.fields[0][0] }

// Over says whether the process has ended.
func (s Stat) Over() bool { return s.State() == 'Z' || s.State() == 'X' }

// Has says whether this kernel tells the field.
func (s Stat) Has(f Field) bool { return len(s.fields) > int(f)-state }

// Number is the value of a field; 0 where it is not told.
func (s Stat) Number(f Field) int {
	if !s.Has(f) {
		return 0
	}
	n, _ := strconv.ParseUint(string(s.fields[f-state]), 10, 64)
	return int(n)
}
