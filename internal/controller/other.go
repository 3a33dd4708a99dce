package controller

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
)

// FieldManager is by what name the writes of Legion's controller are known
// where it runs outside of the API server.
const FieldManager = "legion-controller"

// probeLabel marks the DaemonSet by which an active controller is found.
const probeLabel = "legion.dev/probe"

// OtherController finds out whether another DaemonSet controller than Legion's
// is active in the cluster: it makes a DaemonSet that selects no node and looks
// for so long whether somebody else takes note of it in its status. It returns
// the name under which that was written, "" if nobody did.
func OtherController(ctx context.Context, client kubernetes.Interface, namespace string, patience time.Duration) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("cannot find out whether the cluster's own DaemonSet controller is active: %w", err)
	}
	api := client.AppsV1().DaemonSets(namespace)
	probe, err := api.Create(ctx, probeSet(), metav1.CreateOptions{})
	if err != nil {
		return fail(fmt.Errorf("cannot create a DaemonSet without nodes: %w", err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = api.Delete(ctx, probe.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &probe.UID}})
	}()
	looking, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	only := fields.OneTermEqualSelector(metav1.ObjectNameField, probe.Name).String()
	for looking.Err() == nil {
		w, err := api.Watch(looking, metav1.ListOptions{FieldSelector: only, ResourceVersion: probe.ResourceVersion})
		if err != nil {
			if looking.Err() != nil {
				break
			}
			return fail(err)
		}
		for e := range w.ResultChan() {
			switch o := e.Object.(type) {
			case *appsv1.DaemonSet:
				if who := noticed(o); who != "" && who != FieldManager {
					w.Stop()
					return who, nil
				}
			case *metav1.Status:
				w.Stop()
				return fail(apierrors.FromObject(o))
			}
		}
	}
	if ctx.Err() != nil {
		return fail(context.Cause(ctx))
	}
	return "", nil
}

// Driver returns who drives all of the DaemonSets by the Lease, "" if nobody
// does or updates only.
func Driver(ctx context.Context, client kubernetes.Interface, namespace string) (string, error) {
	lease, err := client.CoordinationV1().Leases(namespace).Get(ctx, FieldManager, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot find out whether Legion's own DaemonSet controller is active: %w", err)
	}
	s := lease.Spec
	if lease.Labels[ModeLabel] != ModeAll || s.HolderIdentity == nil || s.RenewTime == nil || s.LeaseDurationSeconds == nil ||
		time.Since(s.RenewTime.Time) > time.Duration(*s.LeaseDurationSeconds)*time.Second {
		return "", nil
	}
	return *s.HolderIdentity, nil
}

// noticed returns who wrote the status of a DaemonSet, "" if nobody did.
func noticed(ds *appsv1.DaemonSet) string {
	if ds.Status.ObservedGeneration == 0 {
		return ""
	}
	who := "unknown"
	for _, f := range ds.ManagedFields {
		if f.Subresource == "status" {
			who = f.Manager
		}
	}
	return who
}

func probeSet() *appsv1.DaemonSet {
	match := map[string]string{probeLabel: "true"}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "legion-probe-", Labels: match},
		Spec: appsv1.DaemonSetSpec{
			Selector:       &metav1.LabelSelector{MatchLabels: match},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: match},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{probeLabel: "no-node-has-this-label"},
					Containers:   []corev1.Container{{Name: "none", Image: "registry.k8s.io/pause:3.10"}},
				},
			},
		},
	}
}
