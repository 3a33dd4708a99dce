package main

import (
	"context"
	"fmt"
	"os"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	toolswatch "k8s.io/client-go/tools/watch"

	"k8s.io/apimachinery/pkg/watch"

	"legion.dev/legion/test/sim"
)

// result is what one run shows.
type result struct {
	registered, bound, ready, replaced time.Duration
	joins                              []time.Duration
	memory                             memory
	cpuReady, cpuReplaced              time.Duration
}

func (r result) String() string {
	return fmt.Sprintf("registered %s, bound %s, ready %s (%s of CPU), replaced %s (%s of CPU), join → bound %s, resident %d MB (%d MB of it files), at most %d MB",
		ms(r.registered), ms(r.bound), ms(r.ready), ms(r.cpuReady), ms(r.replaced), ms(r.cpuReplaced), ms(median(r.joins)), r.memory.now>>20, r.memory.files>>20, r.memory.peak>>20)
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

const (
	namespace = "default"
	name      = "fleet"
)

// measure is one run: a control plane without anything, and a fleet of n nodes.
func measure(ctx context.Context, o options, n, nth int) (r result, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	plane, err := open(ctx, o)
	if err != nil {
		return r, err
	}
	defer plane.close()
	client, err := kubernetes.NewForConfig(plane.config)
	if err != nil {
		return r, err
	}
	config := o.sim
	config.REST, config.Nodes = plane.config, n
	config.Labels = func(i int) map[string]string {
		return map[string]string{"topology.kubernetes.io/zone": fmt.Sprintf("zone-%d", i%3)}
	}
	fleetCtx, stopFleet := context.WithCancel(ctx)
	defer stopFleet()
	began := time.Now()
	fleet, err := sim.Start(fleetCtx, config)
	if err != nil {
		return r, err
	}
	r.registered = time.Since(began)
	m := &measurement{o: o, client: client, fleet: fleet, plane: plane, n: n}
	if err := m.untaint(ctx); err != nil {
		return r, err
	}
	if err := m.settle(ctx); err != nil {
		return r, err
	}
	profile := ""
	if o.profile != "" {
		profile = fmt.Sprintf("%s-%d-%d", o.profile, n, nth+1)
	}
	if err := m.create(ctx, &r, profile); err != nil {
		return r, err
	}
	saved := plane.profile(ctx, profile, "join", 4*time.Second)
	if err := m.join(ctx, &r, o.joins); err != nil {
		return r, err
	}
	if err := <-saved; err != nil {
		return r, err
	}
	if err := m.replace(ctx, &r, profile); err != nil {
		return r, err
	}
	if err := m.settle(ctx); err != nil {
		return r, err
	}
	if err := wait(ctx, o.rest); err != nil {
		return r, err
	}
	r.memory = plane.memory()
	if profile != "" {
		for query, path := range map[string]string{"": "-heap.pprof", "?debug=1": "-heap.txt"} {
			if err := plane.save(ctx, "/debug/pprof/heap"+query, profile+path); err != nil {
				return r, err
			}
		}
		if err := os.WriteFile(profile+".log", []byte(plane.said()), 0o600); err != nil {
			return r, err
		}
	}
	stopFleet()
	fleet.Wait()
	return r, nil
}

type measurement struct {
	o      options
	client kubernetes.Interface
	fleet  *sim.Fleet
	plane  *plane
	n      int
}

// settle waits until the control plane has no more to do than at rest: hardly
// anything, or what becomes no less, as the renewals of Leases do.
func (m *measurement) settle(ctx context.Context) error {
	if m.plane.pids == nil {
		return wait(ctx, 3*time.Second)
	}
	const window = 5 // seconds
	var used []time.Duration
	for last := m.plane.cpu(); ; {
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
		now := m.plane.cpu()
		used = append(used, now-last)
		last = now
		if used[len(used)-1] < 200*time.Millisecond+time.Duration(m.n)*100*time.Microsecond {
			return nil
		}
		if len(used) < 2*window {
			continue
		}
		if recent := used[len(used)-2*window:]; sum(recent[window:]) > sum(recent[:window])*9/10 {
			return nil
		}
	}
}

func sum(of []time.Duration) (all time.Duration) {
	for _, d := range of {
		all += d
	}
	return all
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func daemonSet() *appsv1.DaemonSet {
	all := intstr.FromString("100%")
	match := map[string]string{"app": name}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: match},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &all},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: match},
				Spec: corev1.PodSpec{
					Containers: []corev1.Container{{
						Name: "daemon", Image: "example.org/daemon:1", Command: []string{"/daemon", "--serve"},
						Env: []corev1.EnvVar{{Name: "NODE_NAME", ValueFrom: &corev1.EnvVarSource{
							FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.nodeName"},
						}}},
					}},
				},
			},
		},
	}
}

// create measures from the creation of the DaemonSet on.
func (m *measurement) create(ctx context.Context, r *result, profile string) error {
	ctx, cancel := context.WithTimeout(ctx, m.o.limit)
	defer cancel()
	if err := m.account(ctx); err != nil {
		return err
	}
	before := m.fleet.Stats().Bound
	saved := m.plane.profile(ctx, profile, "create", 5*time.Second)
	cpu, began := m.plane.cpu(), time.Now()
	if _, err := m.client.AppsV1().DaemonSets(namespace).Create(ctx, daemonSet(), metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("cannot create the daemonset: %w", err)
	}
	bound := make(chan error, 1)
	go func() {
		err := m.fleet.Await(ctx, func(s sim.Stats) bool { return s.Bound >= before+m.n })
		r.bound = time.Since(began)
		bound <- err
	}()
	if err := m.awaitStatus(ctx, 1); err != nil {
		return err
	}
	r.ready, r.cpuReady = time.Since(began), m.plane.cpu()-cpu
	if err := <-bound; err != nil {
		return err
	}
	return <-saved
}

// account waits until the namespace takes pods.
func (m *measurement) account(ctx context.Context) error {
	for {
		_, err := m.client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		if !apierrors.IsNotFound(err) {
			return err
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// awaitStatus waits until the DaemonSet's status says that all pods are of the
// current template and ready.
func (m *measurement) awaitStatus(ctx context.Context, generation int64) error {
	lw := cache.NewListWatchFromClient(m.client.AppsV1().RESTClient(), "daemonsets", namespace, fields.OneTermEqualSelector("metadata.name", name))
	_, err := toolswatch.UntilWithSync(ctx, lw, &appsv1.DaemonSet{}, nil, func(e watch.Event) (bool, error) {
		ds, ok := e.Object.(*appsv1.DaemonSet)
		if !ok {
			return false, nil
		}
		s, n := ds.Status, int32(m.fleet.Stats().Nodes)
		return s.ObservedGeneration >= generation && s.DesiredNumberScheduled == n && s.UpdatedNumberScheduled == n && s.NumberReady == n, nil
	})
	if err != nil {
		seen := "unknown"
		if ds, err := m.client.AppsV1().DaemonSets(namespace).Get(context.WithoutCancel(ctx), name, metav1.GetOptions{}); err == nil {
			seen = fmt.Sprintf("%+v", ds.Status)
		}
		return fmt.Errorf("the daemonset is not ready everywhere (generation %d, status %s, fleet %+v): %w\n%s", generation, seen, m.fleet.Stats(), err, m.plane.said())
	}
	return nil
}

// replace measures an update of all pods, maxUnavailable being 100 %.
func (m *measurement) replace(ctx context.Context, r *result, profile string) error {
	ctx, cancel := context.WithTimeout(ctx, m.o.limit)
	defer cancel()
	saved := m.plane.profile(ctx, profile, "replace", 14*time.Second)
	cpu, began := m.plane.cpu(), time.Now()
	patch := `{"spec":{"template":{"spec":{"containers":[{"name":"daemon","image":"example.org/daemon:2"}]}}}}`
	ds, err := m.client.AppsV1().DaemonSets(namespace).Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("cannot update the daemonset: %w", err)
	}
	if err := m.awaitStatus(ctx, ds.Generation); err != nil {
		return err
	}
	r.replaced, r.cpuReplaced = time.Since(began), m.plane.cpu()-cpu
	return <-saved
}

// join measures from the moment a node has registered until its pod is bound.
func (m *measurement) join(ctx context.Context, r *result, n int) error {
	ctx, cancel := context.WithTimeout(ctx, m.o.limit)
	defer cancel()
	for i := range n {
		before := m.fleet.Stats().Bound
		began := time.Now()
		if err := m.fleet.Join(fmt.Sprintf("joined-%03d", i)); err != nil {
			return err
		}
		if err := m.fleet.Await(ctx, func(s sim.Stats) bool { return s.Bound > before }); err != nil {
			return err
		}
		r.joins = append(r.joins, time.Since(began))
		if err := m.fleet.Await(ctx, func(s sim.Stats) bool { return s.Ready == s.Bound }); err != nil {
			return err
		}
	}
	return nil
}
