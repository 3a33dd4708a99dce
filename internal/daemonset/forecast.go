package daemonset

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Step is one part of a forecast: actions that are begun together, or a wait.
type Step struct {
	// Wave is the wave it belongs to, "" if there is only one.
	Wave    string
	Actions []Action
	// Bake is how long is waited before the next step, with no action.
	Bake time.Duration
}

// Forecast is what an update would do if nothing went wrong.
type Forecast struct {
	Steps []Step
	// End says why there is nothing more to do.
	End string
}

// Forecast plays an update through on nodes as they are now: each pod that is
// made becomes available, and nothing else happens. The nodes are not changed.
// before are the conditions as they are.
func (p *Policy) Forecast(nodes []Node, before []appsv1.DaemonSetCondition, since, now time.Time) Forecast {
	w := play{policy: p, fleet: NewFleet(p), now: now, nodes: map[string]*Node{}}
	w.fleet.Begin(since)
	for i := range nodes {
		n := nodes[i]
		n.Pods = slices.Clone(n.Pods)
		w.nodes[n.Name] = &n
		w.names = append(w.names, n.Name)
		w.set(n.Name)
	}
	slices.Sort(w.names)
	w.due(w.names)
	waited := false
	// Each round updates at least one node, ends a wait, or is the last.
	for range 3*len(nodes) + 3 {
		steps := w.fleet.Rollout(len(nodes), w.now)
		if len(steps) > 0 {
			w.round(steps)
			continue
		}
		if !waited {
			waited = true
			w.finish()
			continue
		}
		gate := w.fleet.Gate(w.now)
		if gate.Until.IsZero() || w.fleet.candidates.Len()+w.fleet.free.Len() == 0 {
			break
		}
		w.steps = append(w.steps, Step{Wave: p.WaveName(gate.Wave), Bake: gate.Until.Sub(w.now).Round(time.Second)})
		w.now = gate.Until
	}
	return Forecast{Steps: w.steps, End: w.fleet.Report(before, w.now).Progressing.Message}
}

// play is an update that is played through.
type play struct {
	policy *Policy
	fleet  *Fleet
	now    time.Time
	nodes  map[string]*Node
	names  []string
	steps  []Step
	made   int
}

func (w *play) set(name string) Verdict {
	n := *w.nodes[name]
	n.Pods = slices.Clone(n.Pods)
	return w.fleet.Set(n, w.now)
}

func (p *Policy) available(o *Pod, now time.Time) bool {
	return o.Ready && !o.ReadySince.Add(p.minReady).After(now)
}

// due carries out what the nodes' own verdicts ask for, until none is left.
func (w *play) due(names []string) {
	for range 8 {
		byWave := map[Wave][]Action{}
		var waves []Wave
		for _, name := range names {
			for _, a := range w.set(name).Actions {
				wave := w.nodes[name].Wave
				if byWave[wave] == nil {
					waves = append(waves, wave)
				}
				byWave[wave] = append(byWave[wave], a)
			}
		}
		if len(waves) == 0 {
			return
		}
		slices.SortFunc(waves, compareWaves)
		for _, wave := range waves {
			w.steps = append(w.steps, Step{Wave: w.policy.WaveName(wave), Actions: byWave[wave]})
		}
		for _, wave := range waves {
			for _, a := range byWave[wave] {
				w.carryOut(a)
			}
		}
	}
}

// finish lets end what is under way: pods go that are being deleted, and those
// become available that are starting.
func (w *play) finish() {
	for _, name := range w.names {
		n := w.nodes[name]
		n.Creating = false
		n.Pods = slices.DeleteFunc(n.Pods, func(o Pod) bool { return o.Deleting })
		for i := range n.Pods {
			if o := &n.Pods[i]; !o.ended() && o.Trouble == "" && !n.NotReady && !w.policy.available(o, w.now) {
				o.Ready, o.ReadySince = true, w.now.Add(-w.policy.minReady)
			}
		}
		w.set(name)
	}
	kept := len(w.steps)
	w.due(w.names)
	w.steps = w.steps[:kept]
}

// round carries out steps of the rollout and what follows from them.
func (w *play) round(actions []Action) {
	w.steps = append(w.steps, Step{Wave: w.policy.WaveName(w.nodes[actions[0].Node].Wave), Actions: actions})
	var names []string
	for _, a := range actions {
		w.carryOut(a)
		names = append(names, a.Node)
	}
	// That a pod takes the place of one that was deleted, or the place beside
	// it, is the same step.
	kept := len(w.steps)
	w.due(names)
	w.steps = w.steps[:kept]
}

func (w *play) carryOut(a Action) {
	n := w.nodes[a.Node]
	if !a.Create() {
		n.Pods = slices.DeleteFunc(n.Pods, func(o Pod) bool { return o.UID == a.UID })
		n.Failures = Failures{}
		w.set(a.Node)
		if !w.policy.updatesOnly || !n.Run || len(n.Pods) > 0 {
			return
		}
		// The cluster's own controller makes the next one.
	}
	w.made++
	id := fmt.Sprintf("new-%d", w.made)
	n.Pods = append(n.Pods, Pod{
		Name: id, UID: types.UID(id), Created: w.now, Hash: w.fleet.Make(a.Node, w.now), Phase: corev1.PodRunning,
		Bound: true, Ready: true, ReadySince: w.now.Add(-w.policy.minReady),
	})
	w.set(a.Node)
}
