package machine

import (
	"bytes"
	"flag"
	"fmt"
	"html"
	"os"
	"testing"

	"legion.dev/legion/internal/service"
)

var update = flag.Bool("update", false, "write docs/states.svg anew from the table")

const drawing = "../../docs/states.svg"

// TestDrawing keeps docs/states.svg the picture of the table.
func TestDrawing(t *testing.T) {
	want := draw()
	if *update {
		if err := os.WriteFile(drawing, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(drawing)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not the picture of the table: go generate ./internal/machine", drawing)
	}
}

// draw makes a grid of states and events. A cell names the state that the
// event leads to as a rule; + says that states with nothing to do in them are
// passed through, a dot that the event changes no state, a dash that it cannot
// come.
func draw() []byte {
	const (
		left, top     = 110, 120
		width, height = 96, 26
	)
	var b bytes.Buffer
	w, h := left+int(kinds)*width+20, top+len(States)*height+60
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", w, h)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", w, h)
	fmt.Fprintf(&b, `<text x="10" y="24" font-size="16">The life of a service: states (rows) and events (columns)</text>`+"\n")
	fmt.Fprintf(&b, `<text x="10" y="44" fill="#555">Generated from the table in internal/machine/table.go.</text>`+"\n")
	for k := range int(kinds) {
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" font-weight="bold">%s</text>`+"\n", left+k*width+width/2, top-12, Kind(k))
	}
	for i, s := range States {
		y := top + i*height
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end" font-weight="bold">%s</text>`+"\n", left-8, y+17, s)
		for k, c := range table[s] {
			text, fill, ink := cellText(c)
			fmt.Fprintf(&b, `<rect x="%d" y="%d" width="%d" height="%d" fill="%s" stroke="#ccc"/>`, left+k*width, y, width, height, fill)
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="%s">%s</text>`+"\n", left+k*width+width/2, y+17, ink, html.EscapeString(text))
		}
	}
	fmt.Fprintf(&b, `<text x="10" y="%d" fill="#555">· the event changes no state    – it cannot come here    + states with nothing to do in them are passed through</text>`+"\n", h-24)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

func cellText(c cell) (text, fill, ink string) {
	switch c.kind {
	case "never":
		return "–", "#f4f4f4", "#999"
	case "keep":
		return "·", "#ffffff", "#999"
	}
	text = string(c.to[0])
	if len(c.to) > 1 {
		text += " +"
	}
	fill = "#e8f0fe"
	switch c.to[0] {
	case service.StartPre, service.Start, service.StartPost, service.Running:
		fill = "#e6f4ea"
	}
	return text, fill, "#000"
}
