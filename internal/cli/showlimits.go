package cli

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"legion.dev/legion/internal/service"
)

// limitProperties are what a service may use.
func limitProperties(r *service.Limits) []property {
	if r == nil {
		r = &service.Limits{}
	}
	amount := func(a *service.Amount, fallback string) string {
		switch {
		case a == nil:
			return fallback
		case a.Share > 0:
			return fmt.Sprintf("%g%%", float64(a.Share)/100)
		case a.Value == math.MaxUint64:
			return "infinity"
		}
		return strconv.FormatUint(a.Value, 10)
	}
	weight := func(n uint64) string {
		if n == 0 {
			return "[not set]"
		}
		return strconv.FormatUint(n, 10)
	}
	cpu := weight(r.CPUWeight)
	if r.CPUIdle {
		cpu = "idle"
	}
	return []property{
		{"MemoryMin", amount(r.MemoryMin, "0")},
		{"MemoryLow", amount(r.MemoryLow, "0")},
		{"MemoryHigh", amount(r.MemoryHigh, "infinity")},
		{"MemoryMax", amount(r.MemoryMax, "infinity")},
		{"MemorySwapMax", amount(r.MemorySwapMax, "infinity")},
		{"TasksMax", amount(r.TasksMax, "infinity")},
		{"CPUQuotaPerSecUSec", usec(time.Duration(r.CPUQuota) * time.Second / 10000)},
		{"CPUWeight", cpu},
		{"IOWeight", weight(r.IOWeight)},
		{"AllowedCPUs", r.AllowedCPUs},
		{"AllowedMemoryNodes", r.AllowedMemoryNodes},
	}
}
