package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

// noScheduler is what a pod without a node is told.
const noScheduler = "Legion places the pods of DaemonSets only: set spec.nodeName, or use a DaemonSet"

// unbound tells pods that name no node why they wait: Legion's server has no
// scheduler, and a pod that stays Pending must say so.
type unbound struct {
	client   kubernetes.Interface
	log      *slog.Logger
	pods     cache.Indexer
	recorder record.EventRecorder
	queue    workqueue.TypedRateLimitingInterface[string]
}

func newUnbound(cfg Config, f informers.SharedInformerFactory, recorder record.EventRecorder) (*unbound, error) {
	u := &unbound{
		client: cfg.Client, log: cfg.Log, recorder: recorder,
		pods: f.Core().V1().Pods().Informer().GetIndexer(),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 30*time.Second)),
	}
	err := cfg.listening.to(f.Core().V1().Pods().Informer(), each(func(_, pod *corev1.Pod) {
		if waitsUntold(pod) {
			u.queue.Add(cache.MetaObjectToName(pod).String())
		}
	}))
	if err != nil {
		return nil, fmt.Errorf("cannot watch for pods that name no node: %w", err)
	}
	return u, nil
}

// waitsUntold says whether a pod waits for a node and nobody has said why.
func waitsUntold(pod *corev1.Pod) bool {
	if pod == nil || pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil {
		return false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return false
		}
	}
	return true
}

func (u *unbound) run(ctx context.Context) {
	work(ctx, u.queue, u.tell, func(pod string, err error) {
		u.log.Warn("cannot tell a pod why it waits", "pod", pod, "error", err)
	})
}

func (u *unbound) tell(ctx context.Context, key string) error {
	obj, found, err := u.pods.GetByKey(key)
	if err != nil || !found {
		return err
	}
	pod := obj.(*corev1.Pod)
	if !waitsUntold(pod) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID},
		"status": map[string]any{"conditions": []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable,
			Message: noScheduler, LastTransitionTime: metav1.Now(),
		}}},
	})
	if err != nil {
		return err
	}
	_, err = u.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err == nil {
		u.recorder.Event(pod, corev1.EventTypeWarning, "FailedScheduling", noScheduler)
	}
	return err
}
