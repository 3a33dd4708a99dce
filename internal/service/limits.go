package service

import "time"

// Limits bound what a service may use, through its cgroup; the fields are
// the directives of systemd.resource-control(5). Nil and zero are no limit.
type Limits struct {
	MemoryMin     *Amount `json:"memoryMin,omitempty"`
	MemoryLow     *Amount `json:"memoryLow,omitempty"`
	MemoryHigh    *Amount `json:"memoryHigh,omitempty"`
	MemoryMax     *Amount `json:"memoryMax,omitempty"`
	MemorySwapMax *Amount `json:"memorySwapMax,omitempty"`
	TasksMax      *Amount `json:"tasksMax,omitempty"`
	// CPUQuota is in 1/10000 of one processor; CPUQuotaPeriod 0 is 100 ms.
	CPUQuota       uint64        `json:"cpuQuota,omitempty"`
	CPUQuotaPeriod time.Duration `json:"cpuQuotaPeriod,omitempty"`
	// CPUShares is the weight of a container, from 2 to 262144, where 1024 is
	// that of one processor; it takes the place of CPUWeight.
	CPUShares uint64 `json:"cpuShares,omitempty"`
	// CPUWeight and IOWeight are from 1 to 10000, where 100 is the default;
	// CPUIdle takes only what nobody else wants.
	CPUWeight uint64 `json:"cpuWeight,omitempty"`
	CPUIdle   bool   `json:"cpuIdle,omitempty"`
	IOWeight  uint64 `json:"ioWeight,omitempty"`
	// AllowedCPUs and AllowedMemoryNodes are lists such as "0-3,5".
	AllowedCPUs        string `json:"allowedCPUs,omitempty"`
	AllowedMemoryNodes string `json:"allowedMemoryNodes,omitempty"`
}

// Amount is a number or, where Share is set, that many 1/10000 of what the
// machine has.
type Amount struct {
	// Value in bytes or tasks; all ones is without limit.
	Value uint64 `json:"value,omitempty"`
	Share uint64 `json:"share,omitempty"`
}
