// Standin is the program of the images that tests build, and of pods of the
// host: it does what its words tell it, step by step with "then" between them,
// and says how it was started.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
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

// steps are the words by which a step begins. One that does not return has the
// program go on until it is signalled.
var steps = map[string]func(args []string) error{
	"exit": func(args []string) error {
		code, err := strconv.Atoi(args[0])
		if err == nil {
			os.Exit(code)
		}
		return err
	},
	"eat":    func([]string) error { return eat() },
	"exists": func(args []string) error { _, err := os.Stat(args[0]); return err },
	"absent": each(absent),
	"fill":   fill,
	"write":  func(args []string) error { return os.WriteFile(args[0], []byte(args[1]), 0o644) },
	"cat":    each(cat),
	"tell":   func([]string) error { return tell() },
	"look":   each(look),
	"touch":  each(touch),
	"remove": each(os.Remove),
	"call":   each(call),
	"say":    func(args []string) error { fmt.Println(strings.Join(args, " ")); return nil },
	"ignore": func([]string) error { signal.Ignore(syscall.SIGTERM); return nil },
	"serve":  func(args []string) error { return serve(args[0]) },
	"until":  each(await),
	"mount":  func(args []string) error { return syscall.Mount("standin", args[0], "tmpfs", 0, "") },
	"leave":  func(args []string) error { left = append(left, args); return nil },
	"watch":  func(args []string) error { return watch(args[0], args[1:]) },
	"sleep": func(args []string) error {
		d, err := time.ParseDuration(args[0])
		time.Sleep(d)
		return err
	},
	"talk": func([]string) error { return talk() },
	"stay": func([]string) error { return stay() },
}

func main() {
	if len(os.Args) == 1 || steps[os.Args[1]] == nil {
		say()
		_ = stay()
		return
	}
	for args := os.Args[1:]; len(args) > 0; {
		end := slices.Index(args, "then")
		if end < 0 {
			end = len(args)
		}
		step := steps[args[0]]
		if step == nil {
			fmt.Printf("%q is no step\n", args[0])
			os.Exit(2)
		}
		if err := step(args[1:end]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		args = args[min(end+1, len(args)):]
	}
}

// each does a step for each of its words.
func each(do func(arg string) error) func(args []string) error {
	return func(args []string) error {
		for _, arg := range args {
			if err := do(arg); err != nil {
				return err
			}
		}
		return nil
	}
}

// stay waits for a signal that ends the program.
func stay() error {
	signals := make(chan os.Signal, 8)
	caught := []os.Signal{syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGINT}
	if !signal.Ignored(syscall.SIGTERM) {
		caught = append(caught, syscall.SIGTERM)
	}
	signal.Notify(signals, caught...)
	fmt.Println("staying")
	for s := range signals {
		fmt.Println("signal:", s)
		if s != syscall.SIGUSR1 {
			lastWords("signal: " + s.String())
			return leave()
		}
	}
	return nil
}

// left are files to be made at the end, each only where the next is there.
var left [][]string

func leave() error {
	for _, l := range left {
		if len(l) > 1 {
			if _, err := os.Stat(l[1]); err != nil {
				continue
			}
		}
		if err := os.WriteFile(l[0], nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// lastWords says why the program ends, where a container does.
func lastWords(text string) {
	if f, err := os.OpenFile("/dev/termination-log", os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString(text)
		_ = f.Close()
	}
}

// eat takes more and more memory, and uses it.
func eat() error {
	var all [][]byte
	for range 1 << 10 {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		all = append(all, block)
	}
	return fmt.Errorf("%d blocks fit", len(all))
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

// fill writes so many zeros to a file.
func fill(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	return os.WriteFile(args[0], make([]byte, n), 0o644)
}
