// Package arch holds the rings of the design (docs/DESIGN.md, section 5) as
// data. Its test keeps the code to them.
package arch

// Module is the path all packages of Legion begin with.
const Module = "legion.dev/legion"

// Rings gives each package its ring. A package imports lower rings only;
// packages of ring 3 do not import each other.
var Rings = map[string]int{
	"internal/service": 0,

	"internal/hostapi":   1,
	"internal/machine":   1,
	"internal/graph":     1,
	"internal/unitfile":  1,
	"internal/initd":     1,
	"internal/calendar":  1,
	"internal/envfile":   1,
	"internal/timer":     1,
	"internal/ocispec":   1,
	"internal/podspec":   1,
	"internal/view":      1,
	"internal/podview":   1,
	"internal/promote":   1,
	"internal/daemonset": 1,
	"internal/placement": 1,
	"internal/token":     1,
	"internal/prefetch":  1,

	"internal/runner":     2,
	"internal/sandbox":    2,
	"internal/cgroup":     2,
	"internal/condition":  2,
	"internal/mounts":     2,
	"internal/bundle":     2,
	"internal/volume":     2,
	"internal/image":      2,
	"internal/journal":    2,
	"internal/store":      2,
	"internal/notify":     2,
	"internal/probe":      2,
	"internal/hostclient": 2,
	"internal/netns":      2,
	"internal/pki":        2,
	"internal/tunnel":     2,
	"internal/unitdir":    2,
	"internal/unitlink":   2,
	"internal/listen":     2,
	"internal/pathwatch":  2,
	"internal/clock":      2,
	"internal/bus":        2,
	"internal/syslog":     2,
	"internal/vitals":     2,
	"internal/keeper":     2,
	"internal/procstat":   2,
	"internal/journald":   2,
	"internal/footprint":  2,
	"internal/console":    2,

	"internal/host":       3,
	"internal/agent":      3,
	"internal/controller": 3,
	"internal/apiserver":  3,
	"internal/web":        3,
	"internal/cli":        3,
	"internal/fleet":      3,

	"internal/app": 4,
}

// Within lists imports inside one ring that are meant, each with its reason.
var Within = map[[2]string]string{
	{"internal/view", "internal/hostapi"}:      "the views fill in the wire's fields",
	{"internal/podview", "internal/podspec"}:   "both read the annotations that podspec writes",
	{"internal/hostclient", "internal/notify"}: "both ends shorten a long socket path in the same way",
	{"internal/runner", "internal/sandbox"}:    "the runner starts what the sandbox prepares",
	{"internal/runner", "internal/mounts"}:     "what a process mounts is made ready before it starts",
	{"internal/runner", "internal/bundle"}:     "a container is made ready before its runtime starts",
	{"internal/bundle", "internal/mounts"}:     "volumes are made ready in one way",
	{"internal/bundle", "internal/sandbox"}:    "user namespaces are made in one place",
	{"internal/ocispec", "internal/unitfile"}:  "the words for signals and capabilities are in one place",
	{"internal/promote", "internal/unitfile"}:  "what a directive means is known in one place",
	{"internal/podspec", "internal/ocispec"}:   "a pod's service becomes a container's",
	{"internal/runner", "internal/procstat"}:   "what the kernel tells of a process is read in one way",
	{"internal/cgroup", "internal/procstat"}:   "what the kernel tells of a process is read in one way",
	{"internal/runner", "internal/cgroup"}:     "a process is born into its cgroup",
	{"internal/unitlink", "internal/unitdir"}:  "which drop-ins a unit has is known in one place",
	{"internal/journald", "internal/notify"}:   "both receive datagrams with their senders' credentials",
	{"internal/syslog", "internal/notify"}:     "both receive datagrams with their senders' credentials",
	{"internal/keeper", "internal/footprint"}:  "both programs let go of pages in the same way",
	{"internal/keeper", "internal/notify"}:     "the keeper hears services while there is no legiond",
	{"internal/cli", "internal/fleet"}:         "the verbs up, down and nodes carry out what fleet does",
}

// Impure are standard packages that ring 0 and ring 1 do not import: they have
// no I/O, no clock, no randomness and no goroutine of their own.
var Impure = []string{"os", "os/exec", "net", "net/http", "log", "log/slog", "math/rand", "math/rand/v2", "crypto/rand", "syscall", "io/ioutil"}

// ImpureAllowed lists the exceptions to Impure, each with its reason.
var ImpureAllowed = map[[2]string]string{}

// Forbidden lists, for each program, import path prefixes it must not link.
var Forbidden = map[string][]string{
	"cmd/legiond": {"k8s.io/", "sigs.k8s.io/", "go.etcd.io/", "google.golang.org/grpc"},
	"cmd/legion":  {"k8s.io/", "sigs.k8s.io/", "go.etcd.io/", "google.golang.org/grpc"},
}
