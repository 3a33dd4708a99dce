package vitals

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func value(t *testing.T, name string) int {
	t.Helper()
	for line := range strings.Lines(Text()) {
		if text, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(text))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in\n%s", name, Text())
	return 0
}

func TestText(t *testing.T) {
	fds, goroutines := value(t, "process_open_fds"), value(t, "go_goroutines")
	if n := value(t, "process_resident_memory_bytes"); n < 1<<20 {
		t.Errorf("%d bytes resident, want more than a MiB", n)
	}
	var files []*os.File
	for range 5 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	stop := make(chan struct{})
	go func() { <-stop }()
	if n := value(t, "process_open_fds"); n != fds+5 {
		t.Errorf("%d open files after 5 more than %d", n, fds)
	}
	if n := value(t, "go_goroutines"); n != goroutines+1 {
		t.Errorf("%d goroutines after one more than %d", n, goroutines)
	}
	close(stop)
	for _, f := range files {
		_ = f.Close()
	}
}
