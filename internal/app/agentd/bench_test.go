package agentd

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkPod measures a pod from the request that creates it to its process,
// and to Ready in the API; and from the request that removes it to its end.
func BenchmarkPod(b *testing.B) {
	f := newFleet(b)
	f.agent("--token", f.token())
	f.node(nodeReady)
	var exec, readied, gone []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("pod-%d", i)
		began := time.Now()
		f.create(name, nil, "sleep", "1000")
		pod := f.pod(name, ready)
		readied = append(readied, time.Since(began))
		g, err := f.host.Group(f.ctx, "pod-"+string(pod.UID))
		if err != nil {
			b.Fatal(err)
		}
		exec = append(exec, g.Status.Services[0].Main.Started.Sub(began))
		began = time.Now()
		f.delete(name)
		gone = append(gone, time.Since(began))
	}
	b.ReportMetric(median(exec), "ms/create-to-process")
	b.ReportMetric(median(readied), "ms/create-to-ready")
	b.ReportMetric(median(gone), "ms/delete-to-gone")
}

func median(all []time.Duration) float64 {
	slices.Sort(all)
	return float64(all[len(all)/2].Microseconds()) / 1000
}
