package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

func median[T int64 | time.Duration](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// rows are the figures of a run as the tables show them.
var rows = []struct {
	what string
	of   func(result) time.Duration
	mb   func(result) int64
}{
	{what: "all registered", of: func(r result) time.Duration { return r.registered }},
	{what: "all bound", of: func(r result) time.Duration { return r.bound }},
	{what: "all ready", of: func(r result) time.Duration { return r.ready }},
	{what: "all replaced", of: func(r result) time.Duration { return r.replaced }},
	{what: "a node joins → bound, median of each run", of: func(r result) time.Duration { return median(r.joins) }},
	{what: "CPU of the control plane until ready", of: func(r result) time.Duration { return r.cpuReady }},
	{what: "CPU of the control plane until replaced", of: func(r result) time.Duration { return r.cpuReplaced }},
	{what: "resident, MB", mb: func(r result) int64 { return r.memory.now }},
	{what: "resident at most, MB", mb: func(r result) int64 { return r.memory.peak }},
}

// spread returns the median, the least and the most of a row.
func spread(row int, results []result) [3]string {
	if of := rows[row].of; of != nil {
		values := each(results, of)
		return [3]string{ms(median(values)).String(), ms(slices.Min(values)).String(), ms(slices.Max(values)).String()}
	}
	values := each(results, rows[row].mb)
	say := func(n int64) string { return fmt.Sprint(n >> 20) }
	return [3]string{say(median(values)), say(slices.Min(values)), say(slices.Max(values))}
}

func each[T any](results []result, of func(result) T) []T {
	var values []T
	for _, r := range results {
		values = append(values, of(r))
	}
	return values
}

// table shows the runs of one control plane.
func table(n int, results []result) {
	fmt.Printf("\n| %d nodes | median | least | most |\n| --- | --- | --- | --- |\n", n)
	for i, row := range rows {
		s := spread(i, results)
		fmt.Printf("| %s | %s | %s | %s |\n", row.what, s[0], s[1], s[2])
	}
	fmt.Println()
	_ = os.Stdout.Sync()
}

// beside shows the medians of several control planes.
func beside(n int, columns []column, results [][]result) {
	head, line := fmt.Sprintf("\n| %d nodes |", n), "| --- |"
	for _, c := range columns {
		head += " " + c.name + " |"
		line += " --: |"
	}
	fmt.Println(head + "\n" + line)
	for i, row := range rows {
		cells := []string{row.what}
		for _, r := range results {
			cells = append(cells, spread(i, r)[0])
		}
		fmt.Printf("| %s |\n", strings.Join(cells, " | "))
	}
	fmt.Println()
	_ = os.Stdout.Sync()
}
