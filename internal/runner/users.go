package runner

import (
	"encoding/json"
	"os"

	"golang.org/x/sys/unix"

	"legion.dev/legion/internal/sandbox"
)

// users says whether the process is to be born in a user namespace.
func (l *launch) users() bool {
	return l.spec.Sandbox != nil && l.spec.Sandbox.PrivateUsers != "" && l.join < 0
}

// handOver is the descriptor from which the process reads what to start. One of
// a user namespace has to wait for what is done to it from outside: until that
// is written to tell.
func (l *launch) handOver() (spec int, tell *os.File, err error) {
	if !l.users() {
		spec, err = specFile(&l.spec)
		return spec, nil, err
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, err
	}
	return pipe[0], os.NewFile(uintptr(pipe[1]), "spec"), nil
}

// tellBorn does to the new process what it has no right to itself, and tells it
// what to start. One that has ended already, or was never born, hears nothing.
func (r *Runner) tellBorn(e *entry, spec *sandbox.Spec, tell *os.File) {
	defer tell.Close()
	if e == nil {
		return
	}
	r.mu.Lock() // so that nobody collects it, and its number stays its own
	if e.early == nil {
		sandbox.Privileged(e.pid, spec)
	}
	r.mu.Unlock()
	_ = json.NewEncoder(tell).Encode(spec)
}
