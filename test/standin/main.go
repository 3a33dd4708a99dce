// Standin is the program of the images that tests build: it says how it was
// started, and does what its words tell it.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

// started is what a process can tell of how it was started.
type started struct {
	Args, Env     []string
	UID, GID      int
	Groups        []int
	Dir, Hostname string
	PID           int
	ReadOnly      bool
	ResolvConf    int
	FirstRun      bool
}

func main() {
	args := os.Args[1:]
	if len(args) > 0 {
		switch args[0] {
		case "exit":
			code, _ := strconv.Atoi(args[1])
			os.Exit(code)
		case "eat":
			eat()
		case "exists":
			if _, err := os.Stat(args[1]); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			return
		case "write":
			if err := os.WriteFile(args[1], []byte(args[2]), 0o644); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			return
		case "cat":
			text, err := os.ReadFile(args[1])
			if err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Printf("%s\n", text)
		}
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGINT)
	say()
	for s := range signals {
		fmt.Println("signal:", s)
		if s != syscall.SIGUSR1 {
			return
		}
	}
}

// eat takes more and more memory, and uses it.
func eat() {
	var all [][]byte
	for range 1 << 10 {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		all = append(all, block)
	}
	fmt.Println(len(all))
}

func say() {
	out := started{Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid()}
	out.Groups, _ = os.Getgroups()
	out.Dir, _ = os.Getwd()
	out.Hostname, _ = os.Hostname()
	// The root file system is as the image has it at each start.
	_, err := os.Stat("/mark")
	out.FirstRun = err != nil
	out.ReadOnly = os.WriteFile("/mark", nil, 0o644) != nil
	text, _ := os.ReadFile("/etc/resolv.conf")
	out.ResolvConf = len(text)
	line, _ := json.Marshal(out)
	fmt.Printf("%s\n", line)
}
