// Package figures is what the benchmarks say: figures taken several times, as a
// table, with how busy the machine was.
package figures

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Series is one figure, taken several times.
type Series struct {
	Name, Target, Unit string
	values             []float64
}

// Add takes it once more.
func (s *Series) Add(v float64) { s.values = append(s.values, v) }

func (s *Series) String() string {
	if len(s.values) == 0 {
		return fmt.Sprintf("| %s | %s | not measured | | 0 |", s.Name, s.Target)
	}
	v := slices.Sorted(slices.Values(s.values))
	return fmt.Sprintf("| %s | %s | %.3g %s | %.3g – %.3g | %d |", s.Name, s.Target, v[len(v)/2], s.Unit, v[0], v[len(v)-1], len(v))
}

// Print prints the table; before is the Load at the beginning.
func Print(all []*Series, before string) {
	fmt.Println("| figure | target | median | spread | n |\n| --- | --- | --- | --- | --- |")
	for _, s := range all {
		fmt.Println(s)
	}
	fmt.Printf("\nload average before: %s; after: %s\n", before, Load())
}

// Load is the machine's load average (proc_loadavg(5)).
func Load() string {
	data, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(data))[:3], " ")
}
