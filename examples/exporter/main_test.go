package main

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetricsOfThisMachine(t *testing.T) {
	m, err := newMachine("/proc", "/sys")
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range families {
		got[f.GetName()] = true
	}
	for _, want := range []string{"node_cpu_seconds_total", "node_load1", "node_memory_MemTotal_bytes", "node_network_receive_bytes_total", "node_scrape_collector_success"} {
		if !got[want] {
			t.Errorf("no %s", want)
		}
	}
}
