package host

// mostEarly is how many exits are kept of which nobody has asked yet.
const mostEarly = 1024

// early are exits that came before the news of their process's start, or of
// orphans that nobody has asked for yet. The newest count: the oldest make way.
type early struct {
	byPID map[int]Exited
	// order are the exits as they came, also those that were taken since.
	order []Exited
}

func (e *early) put(x Exited) {
	if e.byPID == nil {
		e.byPID = map[int]Exited{}
	}
	e.byPID[x.PID] = x
	e.order = append(e.order, x)
	for len(e.byPID) > mostEarly {
		e.forget(e.order[0])
		e.order = e.order[1:]
	}
	if len(e.order) > 2*mostEarly {
		e.order = e.all()
	}
}

// forget forgets this exit, and not a later one of a process of the same number.
func (e *early) forget(x Exited) {
	if e.has(x) {
		delete(e.byPID, x.PID)
	}
}

func (e *early) has(x Exited) bool {
	newest, ok := e.byPID[x.PID]
	return ok && newest.StartTicks == x.StartTicks && newest.Exit.At.Equal(x.Exit.At)
}

// all are those that nobody has taken, the oldest first.
func (e *early) all() []Exited {
	var left []Exited
	for _, x := range e.order {
		if e.has(x) {
			left = append(left, x)
		}
	}
	return left
}
