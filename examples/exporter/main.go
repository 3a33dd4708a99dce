// Command exporter serves what /proc tells of this machine as Prometheus
// metrics, under the names that dashboards for nodes expect.
//
//	GET /metrics   the metrics
//	GET /healthz   200
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/procfs"
	"github.com/prometheus/procfs/blockdevice"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "127.0.0.1:9100", "`address` to listen on")
	proc := flag.String("proc", "/proc", "where procfs is mounted")
	sys := flag.String("sys", "/sys", "where sysfs is mounted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *listen, *proc, *sys); err != nil {
		log.Fatalf("exporter: %v", err)
	}
}

func run(ctx context.Context, listen, proc, sys string) error {
	m, err := newMachine(proc, sys)
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorLog: log.Default(), ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	log.Printf("serving http://%s/metrics", l.Addr())
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	return server.Shutdown(last)
}

// machine collects on each scrape.
type machine struct {
	proc  procfs.FS
	block blockdevice.FS
}

func newMachine(proc, sys string) (*machine, error) {
	p, err := procfs.NewFS(proc)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", proc, err)
	}
	b, err := blockdevice.NewFS(proc, sys)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", sys, err)
	}
	return &machine{p, b}, nil
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	cpuSeconds  = desc("node_cpu_seconds_total", "Seconds the CPUs spent in each mode.", "cpu", "mode")
	bootTime    = desc("node_boot_time_seconds", "When the machine was booted, seconds since 1970.")
	switches    = desc("node_context_switches_total", "Context switches.")
	forks       = desc("node_forks_total", "Processes and threads created.")
	running     = desc("node_procs_running", "Processes that can run.")
	blocked     = desc("node_procs_blocked", "Processes that wait for I/O.")
	load1       = desc("node_load1", "Load average over 1 minute.")
	load5       = desc("node_load5", "Load average over 5 minutes.")
	load15      = desc("node_load15", "Load average over 15 minutes.")
	received    = desc("node_network_receive_bytes_total", "Bytes received.", "device")
	transmitted = desc("node_network_transmit_bytes_total", "Bytes sent.", "device")
	diskRead    = desc("node_disk_read_bytes_total", "Bytes read.", "device")
	diskWritten = desc("node_disk_written_bytes_total", "Bytes written.", "device")
	fsSize      = desc("node_filesystem_size_bytes", "Size of a filesystem.", "device", "mountpoint", "fstype")
	fsAvailable = desc("node_filesystem_avail_bytes", "Space that is left to ordinary users.", "device", "mountpoint", "fstype")
	success     = desc("node_scrape_collector_success", "Whether a part of /proc could be read.", "collector")
)

// Describe leaves the metrics unchecked: which there are depends on the kernel.
func (m *machine) Describe(chan<- *prometheus.Desc) {}

// Collect reads /proc. A part that cannot be read is said so and left out.
func (m *machine) Collect(ch chan<- prometheus.Metric) {
	for name, part := range map[string]func(chan<- prometheus.Metric) error{
		"stat": m.stat, "loadavg": m.load, "meminfo": m.memory, "netdev": m.network, "diskstats": m.disks, "filesystem": m.filesystems,
	} {
		ok := 1.0
		if err := part(ch); err != nil {
			log.Printf("cannot collect %s: %v", name, err)
			ok = 0
		}
		gauge(ch, success, ok, name)
	}
}

func gauge(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func counter(ch chan<- prometheus.Metric, d *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
}

func (m *machine) stat(ch chan<- prometheus.Metric) error {
	s, err := m.proc.Stat()
	if err != nil {
		return err
	}
	for i, c := range s.CPU {
		for mode, v := range map[string]float64{
			"user": c.User, "nice": c.Nice, "system": c.System, "idle": c.Idle,
			"iowait": c.Iowait, "irq": c.IRQ, "softirq": c.SoftIRQ, "steal": c.Steal,
		} {
			counter(ch, cpuSeconds, v, fmt.Sprint(i), mode)
		}
	}
	gauge(ch, bootTime, float64(s.BootTime))
	counter(ch, switches, float64(s.ContextSwitches))
	counter(ch, forks, float64(s.ProcessCreated))
	gauge(ch, running, float64(s.ProcessesRunning))
	gauge(ch, blocked, float64(s.ProcessesBlocked))
	return nil
}

func (m *machine) load(ch chan<- prometheus.Metric) error {
	l, err := m.proc.LoadAvg()
	if err != nil {
		return err
	}
	gauge(ch, load1, l.Load1)
	gauge(ch, load5, l.Load5)
	gauge(ch, load15, l.Load15)
	return nil
}

func (m *machine) memory(ch chan<- prometheus.Metric) error {
	i, err := m.proc.Meminfo()
	if err != nil {
		return err
	}
	for name, v := range map[string]*uint64{
		"MemTotal": i.MemTotalBytes, "MemFree": i.MemFreeBytes, "MemAvailable": i.MemAvailableBytes,
		"Buffers": i.BuffersBytes, "Cached": i.CachedBytes, "SwapTotal": i.SwapTotalBytes,
		"SwapFree": i.SwapFreeBytes, "Dirty": i.DirtyBytes, "Slab": i.SlabBytes, "Shmem": i.ShmemBytes,
	} {
		if v != nil {
			gauge(ch, desc("node_memory_"+name+"_bytes", "Memory: "+name+" of /proc/meminfo."), float64(*v))
		}
	}
	return nil
}

func (m *machine) network(ch chan<- prometheus.Metric) error {
	devices, err := m.proc.NetDev()
	if err != nil {
		return err
	}
	for name, d := range devices {
		counter(ch, received, float64(d.RxBytes), name)
		counter(ch, transmitted, float64(d.TxBytes), name)
	}
	return nil
}

// sector is the unit of /proc/diskstats, whatever the disk's own is.
const sector = 512

func (m *machine) disks(ch chan<- prometheus.Metric) error {
	disks, err := m.block.ProcDiskstats()
	if err != nil {
		return err
	}
	for _, d := range disks {
		counter(ch, diskRead, float64(d.ReadSectors*sector), d.DeviceName)
		counter(ch, diskWritten, float64(d.WriteSectors*sector), d.DeviceName)
	}
	return nil
}

func (m *machine) filesystems(ch chan<- prometheus.Metric) error {
	self, err := m.proc.Self()
	if err != nil {
		return err
	}
	mounts, err := self.MountInfo()
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, mount := range mounts {
		// Only what is on a device: the others have no space of their own.
		if seen[mount.MountPoint] || len(mount.Source) == 0 || mount.Source[0] != '/' {
			continue
		}
		seen[mount.MountPoint] = true
		var st syscall.Statfs_t
		if err := syscall.Statfs(mount.MountPoint, &st); err != nil {
			continue // not for this user to see
		}
		labels := []string{mount.Source, mount.MountPoint, mount.FSType}
		gauge(ch, fsSize, float64(st.Blocks)*float64(st.Bsize), labels...)
		gauge(ch, fsAvailable, float64(st.Bavail)*float64(st.Bsize), labels...)
	}
	return nil
}
