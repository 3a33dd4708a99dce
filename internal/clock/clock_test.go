package clock

import (
	"testing"
	"time"
)

func TestClocks(t *testing.T) {
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	up, at := c.Uptime(), c.Real()
	if up <= 0 || at.Before(time.Unix(0, 0)) {
		t.Errorf("uptime %v, time %v", up, at)
	}
	if again := c.Uptime(); again < up {
		t.Errorf("uptime goes back from %v to %v", up, again)
	}
	select {
	case <-c.Jumped():
		t.Error("a jump that was none")
	default:
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
