package main

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// talk says what it reads, line by line, and when that is at its end; of a
// terminal also the size, whenever it changes.
func talk() error {
	sizes := make(chan os.Signal, 1)
	signal.Notify(sizes, unix.SIGWINCH)
	go func() {
		for range sizes {
			size()
		}
	}()
	_, err := unix.IoctlGetTermios(0, unix.TCGETS)
	fmt.Println("terminal", err == nil)
	size() // it may have been set before there was anybody to tell
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		fmt.Printf("read %q\n", in.Text())
	}
	fmt.Println("end of input", in.Err())
	return nil
}

func size() {
	if s, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil && s.Row > 0 {
		fmt.Println("size", s.Row, s.Col)
	}
}
