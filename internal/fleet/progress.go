package fleet

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Progress tells a person what is being waited for, and since when: in place on
// a terminal, in plain lines elsewhere.
type Progress struct {
	w        io.Writer
	terminal bool
	begin    time.Time

	mu    sync.Mutex
	text  string
	since time.Time
	said  bool // text stands in a line of its own already
	stop  chan struct{}
	ended sync.WaitGroup
}

// quietFor is how long a step may last without a word.
const quietFor = 2 * time.Second

// sayEvery is how often a long step is mentioned again in plain lines.
const sayEvery = 10 * time.Second

// NewProgress begins to count the time.
func NewProgress(w io.Writer, terminal bool) *Progress {
	p := &Progress{w: w, terminal: terminal, begin: time.Now(), stop: make(chan struct{})}
	p.ended.Add(1)
	go p.tick()
	return p
}

// Step says what is being waited for from now on.
func (p *Progress) Step(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if text == p.text {
		return
	}
	p.text, p.since, p.said = text, time.Now(), false
	if p.terminal && time.Since(p.begin) >= quietFor {
		p.repaint()
	}
}

// Say prints a line that stays.
func (p *Progress) Say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// Elapsed is the time since the beginning, rounded for people.
func (p *Progress) Elapsed() time.Duration {
	return time.Since(p.begin).Round(100 * time.Millisecond)
}

// Close ends the display.
func (p *Progress) Close() {
	p.mu.Lock()
	select {
	case <-p.stop:
	default:
		close(p.stop)
		p.clear()
	}
	p.mu.Unlock()
	p.ended.Wait()
}

func (p *Progress) tick() {
	defer p.ended.Done()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-p.stop:
			return
		case now := <-ticker.C:
			p.mu.Lock()
			switch {
			case p.text == "" || now.Sub(p.begin) < quietFor:
			case p.terminal:
				p.repaint()
			case !p.said && now.Sub(p.since) >= quietFor || now.Sub(last) >= sayEvery:
				p.said, last = true, now
				fmt.Fprintf(p.w, "%5s  %s\n", p.Elapsed().Round(time.Second), p.text)
			}
			p.mu.Unlock()
		}
	}
}

func (p *Progress) repaint() {
	fmt.Fprintf(p.w, "\r\x1b[K%5s  %s", p.Elapsed().Round(time.Second), p.text)
	p.said = true
}

func (p *Progress) clear() {
	if p.terminal && p.said {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.said = false
	}
}
