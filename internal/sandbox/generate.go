//go:build ignore

// Command generate writes the tables of system calls, by name and number, from
// the numbers in golang.org/x/sys/unix.
package main

import (
	"fmt"
	"go/format"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

var line = regexp.MustCompile(`(?m)^\tSYS_(\w+)\s*= (\d+)`)

func main() {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		log.Fatal(err)
	}
	for arch, goarches := range map[string][]string{"amd64": {"amd64", "386"}, "arm64": {"arm64", "arm"}} {
		var b strings.Builder
		fmt.Fprintf(&b, "// Made by generate.go. DO NOT EDIT.\n\npackage sandbox\n\n// tables are the system calls of the architectures that this one can run, its own first.\nvar tables = []table{\n")
		for _, a := range goarches {
			text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+a+".go"))
			if err != nil {
				log.Fatal(err)
			}
			fmt.Fprintf(&b, "{arch%s, `", strings.ToUpper(a))
			for i, m := range line.FindAllStringSubmatch(string(text), -1) {
				name := strings.ToLower(m[1])
				if a == "arm64" && name == "fstatat" {
					name = "newfstatat" // its name everywhere else
				}
				if i > 0 {
					b.WriteString(map[bool]string{true: "\n", false: " "}[i%8 == 0])
				}
				b.WriteString(name + ":" + m[2])
			}
			b.WriteString("`},\n")
		}
		b.WriteString("}\n")
		out, err := format.Source([]byte(b.String()))
		if err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile("syscalls_"+arch+".go", out, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
