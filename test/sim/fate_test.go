package sim

import (
	"fmt"
	"testing"
	"time"
)

func TestFateComesFromTheSeed(t *testing.T) {
	cfg := &Config{Seed: 1, Start: Span{time.Second, 3 * time.Second}, Stop: Span{Min: time.Second}, Failures: 0.25}
	other := *cfg
	other.Seed = 2
	fails, differ := 0, 0
	for i := range 4000 {
		name := fmt.Sprint("node-", i%100)
		f := fateOf(cfg, name, i/100)
		if f != fateOf(cfg, name, i/100) {
			t.Fatal("the same seed gives another fate")
		}
		if f != fateOf(&other, name, i/100) {
			differ++
		}
		if f.start < time.Second || f.start > 3*time.Second || f.stop != time.Second {
			t.Fatalf("a fate out of its span: %+v", f)
		}
		if f.fails {
			fails++
		}
	}
	if fails < 850 || fails > 1150 {
		t.Errorf("%d of 4,000 pods fail, a quarter should", fails)
	}
	if differ < 3900 {
		t.Errorf("another seed changes %d of 4,000 fates", differ)
	}
}
