package agent

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Eviction is how little may be free before the node says that it is under
// pressure, by the kubelet's signals.
type Eviction map[string]Threshold

// Threshold is a number of bytes, files or processes, or a share of all of them.
type Threshold struct {
	Least int64
	Share float64
	Text  string // as it was given
}

// The kubelet's signals, of its --eviction-hard.
const (
	memoryAvailable = "memory.available"
	diskAvailable   = "nodefs.available"
	inodesFree      = "nodefs.inodesFree"
	pidAvailable    = "pid.available"
)

// DefaultEviction are the kubelet's hard thresholds, and a share of the process
// numbers.
const DefaultEviction = memoryAvailable + "<100Mi," + diskAvailable + "<10%," + inodesFree + "<5%," + pidAvailable + "<5%"

var defaultEviction = must(readEviction(DefaultEviction))

func must(e Eviction, err error) Eviction {
	if err != nil {
		panic(err)
	}
	return e
}

// ParseEviction reads thresholds of the form SIGNAL<QUANTITY,SIGNAL<PERCENT%.
// The default holds for those that are not named.
func ParseEviction(text string) (Eviction, error) {
	given, err := readEviction(text)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(defaultEviction)
	maps.Copy(all, given)
	return all, nil
}

func readEviction(text string) (Eviction, error) {
	all := Eviction{}
	signals := []string{memoryAvailable, diskAvailable, inodesFree, pidAvailable}
	for one := range strings.SplitSeq(text, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		signal, value, ok := strings.Cut(one, "<")
		if !ok || !slices.Contains(signals, signal) {
			return nil, fmt.Errorf("%q is not of the form SIGNAL<VALUE with a signal of %s", one, strings.Join(signals, ", "))
		}
		t := Threshold{Text: value}
		if percent, ok := strings.CutSuffix(value, "%"); ok {
			share, err := strconv.ParseFloat(percent, 64)
			if err != nil || !(share >= 0 && share <= 100) {
				return nil, fmt.Errorf("%q: %q is not a share of 0%% to 100%%", one, value)
			}
			t.Share = share / 100
		} else {
			q, err := resource.ParseQuantity(value)
			if err != nil || q.Sign() < 0 {
				return nil, fmt.Errorf("%q: %q is neither a quantity, as 500Mi, nor a share, as 5%%", one, value)
			}
			t.Least = q.Value()
		}
		all[signal] = t
	}
	return all, nil
}

// low says whether too little of all is free; of what has no limit it never is.
func (t Threshold) low(free, all int64) bool {
	return all > 0 && float64(free) < max(float64(t.Least), t.Share*float64(all))
}

// pressures says for each of the kubelet's conditions what the node is short of;
// empty for nothing. The numbers of the moment are not told: each change of a
// message is a write.
func (e Eviction) pressures(f facts) map[v1.NodeConditionType]string {
	if e == nil {
		e = defaultEviction
	}
	short := map[v1.NodeConditionType]string{}
	look := func(kind v1.NodeConditionType, signal, what string, free, all int64) {
		if t := e[signal]; t.low(free, all) {
			short[kind] = fmt.Sprintf("the node is short of %s: less than %s is free (legion-agent --eviction-hard %s)", what, t.Text, signal)
		}
	}
	look(v1.NodeMemoryPressure, memoryAvailable, "memory", f.MemoryAvailable, f.MemoryTotal)
	look(v1.NodeDiskPressure, inodesFree, "inodes on the disk of the agent's directory", f.InodesFree, f.Inodes)
	look(v1.NodeDiskPressure, diskAvailable, "space on the disk of the agent's directory", f.DiskAvailable, f.DiskTotal)
	look(v1.NodePIDPressure, pidAvailable, "process numbers", f.ProcessesAtMost-f.Processes, f.ProcessesAtMost)
	return short
}
