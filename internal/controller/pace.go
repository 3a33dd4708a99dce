package controller

import (
	"context"
	"errors"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// pace says how many writes may be under way at a time. It is found out from
// how long they take and whether the server refuses: doubled with each round
// at first, then one more a round; less when writes take long, half when the
// server says that it has too much to do. A value; the zero value is not ready.
type pace struct {
	window float64
	most   float64
	// steep: nothing has gone wrong so far, and the window doubles.
	steep bool
	// quick is the least time a write took since then, and before the least in
	// the spell before that: the server may become slower for good.
	quick, before time.Duration
	since         time.Time
	// cut is when the window was last made smaller: what began before that
	// says nothing new.
	cut time.Time
}

const (
	firstWindow = 8
	// slack is how much longer than the quickest a write may take before the
	// pace is too high; unhurried is what never is too long, tooLong what
	// always is.
	slack     = 8
	unhurried = 100 * time.Millisecond
	tooLong   = time.Second
	spell     = 30 * time.Second
)

func newPace(most int) pace {
	return pace{window: min(firstWindow, float64(most)), most: float64(most), steep: true}
}

// allowed is how many writes may be under way.
func (p pace) allowed() int { return int(p.window) }

// after is the pace after a write that began and ended then.
func (p pace) after(began, ended time.Time, refused bool) pace {
	took := ended.Sub(began)
	if ended.Sub(p.since) > spell {
		p.before, p.quick, p.since = p.quick, 0, ended
	}
	if !refused && (p.quick == 0 || took < p.quick) {
		p.quick = took
	}
	least := p.quick
	if p.before > 0 && (p.before < least || least == 0) {
		least = p.before
	}
	switch {
	case refused:
		return p.less(began, ended, 0.5)
	case took > tooLong, took > unhurried && took > slack*least:
		return p.less(began, ended, 0.8)
	case p.steep:
		p.window++
	default:
		p.window += 1 / p.window
	}
	p.window = min(p.window, p.most)
	return p
}

func (p pace) less(began, ended time.Time, share float64) pace {
	p.steep = false
	if began.Before(p.cut) {
		return p
	}
	p.window, p.cut = max(1, p.window*share), ended
	return p
}

// write writes, and returns what is learned of it about the pace.
type write func() (learned func(pace) pace)

// gate lets writes through at a pace, in the order in which they came.
type gate struct {
	mu      sync.Mutex
	pace    pace
	flying  int
	waiting []write
	// running are the writes that are under way.
	running sync.WaitGroup
}

func newGate(most int) *gate { return &gate{pace: newPace(most)} }

// do runs a write beside the caller, now or when there is room. The write says
// whether the server refused it because it has too much to do.
func (g *gate) do(ctx context.Context, write func() (refused bool)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting = append(g.waiting, func() func(pace) pace {
		if ctx.Err() != nil {
			return nil
		}
		began := time.Now()
		refused := write()
		ended := time.Now()
		return func(p pace) pace { return p.after(began, ended, refused) }
	})
	g.start()
}

// start starts what there is room for; the caller holds the lock.
func (g *gate) start() {
	for next := g.next(); next != nil; next = g.next() {
		g.running.Go(func() { g.work(next) })
	}
}

// next is the write whose turn it is; the caller holds the lock.
func (g *gate) next() write {
	if len(g.waiting) == 0 || g.flying >= g.pace.allowed() {
		return nil
	}
	g.flying++
	next := g.waiting[0]
	g.waiting[0] = nil
	g.waiting = g.waiting[1:]
	return next
}

// work carries out a write, and then others as long as there are some: what a
// write calls goes deep, and a stack that has grown once is used again.
func (g *gate) work(next write) {
	for next != nil {
		next = g.ended(next())
	}
}

// ended takes note of the end of a write, and returns the one that follows it.
func (g *gate) ended(learn func(pace) pace) write {
	g.mu.Lock()
	defer g.mu.Unlock()
	if learn != nil {
		g.pace = learn(g.pace)
	}
	g.flying--
	next := g.next()
	g.start()
	return next
}

// tooMuch says whether an error is the server's way of asking for less.
func tooMuch(err error) bool {
	return apierrors.IsTooManyRequests(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) ||
		apierrors.IsServiceUnavailable(err) || errors.Is(err, context.DeadlineExceeded)
}
