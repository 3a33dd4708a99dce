package daemonset

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// The annotations of a DaemonSet that say how its updates go (docs/ROLLOUTS.md).
const (
	OptionPrefix     = "rollout.legion.dev/"
	NotReadyNodesKey = OptionPrefix + "not-ready-nodes"
	PausedKey        = OptionPrefix + "paused"
	PartitionKey     = OptionPrefix + "partition"
	CanaryKey        = OptionPrefix + "canary"
	OrderByKey       = OptionPrefix + "order-by"
	BakeKey          = OptionPrefix + "bake"
	DeadlineKey      = OptionPrefix + "deadline"
	OnFailureKey     = OptionPrefix + "on-failure"
)

// NotReadyNodes says what nodes are to an update that were NotReady before it
// came to them.
type NotReadyNodes string

// Values of NotReadyNodes.
const (
	// Skip: they use no budget and are updated when they return.
	Skip NotReadyNodes = "skip"
	// Count: they use budget as any other node, as upstream has it.
	Count NotReadyNodes = "count"
)

// Options say how updates of a DaemonSet go. The zero value is what upstream
// does.
type Options struct {
	// NotReadyNodes is empty where the annotation is absent.
	NotReadyNodes NotReadyNodes
	// Paused: nothing is updated.
	Paused bool
	// Partition is how many nodes, the last in order, keep their revision.
	Partition intstr.IntOrString
	// Canary selects the nodes that go first, nil where there are none.
	Canary labels.Selector
	// OrderBy is the node label whose values go one after the other.
	OrderBy string
	// Bake is how long an update waits after the canary and after each value.
	Bake time.Duration
	// Deadline is how long an update may go without progress, 0 for ever.
	Deadline time.Duration
	// Rollback: an update that exceeds its deadline is rolled back.
	Rollback bool
}

// Wrong is an annotation that cannot be used.
type Wrong struct {
	Key, Value string
	// Want says what is allowed.
	Want string
}

func (w Wrong) String() string {
	return fmt.Sprintf("annotation %s: %q: %s", w.Key, w.Value, w.Want)
}

// optionParsers read one value each; they return what is allowed if it is
// wrong.
var optionParsers = map[string]func(o *Options, value string) (want string){
	NotReadyNodesKey: func(o *Options, v string) string {
		o.NotReadyNodes = NotReadyNodes(v)
		return unless(o.NotReadyNodes == Skip || o.NotReadyNodes == Count, "must be skip or count")
	},
	PausedKey: func(o *Options, v string) string {
		o.Paused = v == "true"
		return unless(v == "true" || v == "false", "must be true or false")
	},
	PartitionKey: func(o *Options, v string) string {
		var ok bool
		o.Partition, ok = parsePartition(v)
		return unless(ok, "must be a number of nodes, such as 5, or a part of them, 0% to 100%")
	},
	CanaryKey: func(o *Options, v string) string {
		selector, err := labels.Parse(v)
		if err != nil {
			return fmt.Sprintf("must be a label selector, such as canary=true: %v", err)
		}
		o.Canary = selector
		return unless(!selector.Empty(), "must be a label selector, such as canary=true; an empty one selects all nodes")
	},
	OrderByKey: func(o *Options, v string) string {
		o.OrderBy = v
		if wrong := validation.IsQualifiedName(v); len(wrong) > 0 {
			return "must be the key of a node label, such as topology.kubernetes.io/zone: " + strings.Join(wrong, "; ")
		}
		return ""
	},
	BakeKey: func(o *Options, v string) string {
		d, err := time.ParseDuration(v)
		o.Bake = d
		return unless(err == nil && d >= 0, "must be a time span that is not negative, such as 5m or 1h30m")
	},
	DeadlineKey: func(o *Options, v string) string {
		d, err := time.ParseDuration(v)
		o.Deadline = d
		return unless(err == nil && d > 0, "must be a time span above zero, such as 10m or 1h30m")
	},
	OnFailureKey: func(o *Options, v string) string {
		o.Rollback = v == "rollback"
		return unless(v == "halt" || v == "rollback", "must be halt or rollback")
	},
}

func unless(ok bool, want string) string {
	if ok {
		return ""
	}
	return want
}

func parsePartition(v string) (intstr.IntOrString, bool) {
	number, percent := strings.CutSuffix(v, "%")
	n, err := strconv.ParseInt(number, 10, 32)
	if err != nil || n < 0 || percent && n > 100 || strings.HasPrefix(v, "+") {
		return intstr.IntOrString{}, false
	}
	return intstr.Parse(v), true
}

// ParseOptions reads the annotations of a DaemonSet. Where some are wrong all
// of them are told, in the order of their keys, and the options must not be
// used: an update then halts (Compile sees to that).
func ParseOptions(annotations map[string]string) (Options, []Wrong) {
	var o Options
	var wrong []Wrong
	for key, value := range annotations {
		if !strings.HasPrefix(key, OptionPrefix) {
			continue
		}
		parse, known := optionParsers[key]
		if !known {
			wrong = append(wrong, Wrong{key, value, "is not known; known are " + strings.Join(optionNames, ", ")})
			continue
		}
		if want := parse(&o, value); want != "" {
			wrong = append(wrong, Wrong{key, value, want})
		}
	}
	if _, there := annotations[DeadlineKey]; o.Rollback && !there {
		wrong = append(wrong, Wrong{OnFailureKey, annotations[OnFailureKey], "needs " + DeadlineKey + ": an update has failed when it exceeds its deadline"})
	}
	slices.SortFunc(wrong, func(a, b Wrong) int { return cmp.Compare(a.Key, b.Key) })
	return o, wrong
}

// optionNames are the keys of all options, without their prefix.
var optionNames []string

func init() {
	for _, key := range slices.Sorted(maps.Keys(optionParsers)) {
		optionNames = append(optionNames, strings.TrimPrefix(key, OptionPrefix))
	}
}

// String says the options in a line, for people.
func (o Options) String() string {
	var s []string
	if o.Paused {
		s = append(s, "paused")
	}
	if o.Canary != nil {
		s = append(s, "nodes with "+o.Canary.String()+" first")
	}
	if o.OrderBy != "" {
		s = append(s, "one value of "+o.OrderBy+" at a time")
	}
	if o.Bake > 0 {
		s = append(s, "bake "+o.Bake.String())
	}
	if o.Partition != (intstr.IntOrString{}) {
		s = append(s, "the last "+o.Partition.String()+" keep their revision")
	}
	if o.NotReadyNodes != "" {
		s = append(s, string(o.NotReadyNodes)+" nodes that are not ready")
	}
	if o.Deadline > 0 {
		failure := "halt"
		if o.Rollback {
			failure = "roll back"
		}
		s = append(s, failure+" after "+o.Deadline.String()+" without progress")
	}
	if len(s) == 0 {
		return "node by node"
	}
	return strings.Join(s, ", ")
}
