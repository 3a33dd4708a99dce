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
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"legion.dev/legion/internal/placement"
)

// orphans removes the pods of nodes that are gone: no agent is left to say
// that they ended.
type orphans struct {
	client kubernetes.Interface
	log    *slog.Logger
	nodes  corelisters.NodeLister
	pods   cache.Indexer
	queue  workqueue.TypedRateLimitingInterface[string]
}

func newOrphans(cfg Config, f informers.SharedInformerFactory) (*orphans, error) {
	o := &orphans{
		client: cfg.Client, log: cfg.Log,
		nodes: f.Core().V1().Nodes().Lister(),
		pods:  f.Core().V1().Pods().Informer().GetIndexer(),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](100*time.Millisecond, 30*time.Second)),
	}
	err := cfg.listening.to(f.Core().V1().Nodes().Informer(), each(func(old, node *corev1.Node) {
		if old == nil {
			o.queue.Add(node.Name)
		}
	}))
	if err == nil {
		err = cfg.listening.to(f.Core().V1().Pods().Informer(), each(func(_, pod *corev1.Pod) {
			if name := pod.Spec.NodeName; name != "" {
				if _, err := o.nodes.Get(name); err != nil {
					o.queue.Add(name)
				}
			}
		}))
	}
	if err != nil {
		return nil, fmt.Errorf("cannot watch for pods without a node: %w", err)
	}
	return o, nil
}

func (o *orphans) run(ctx context.Context) {
	work(ctx, o.queue, o.look, func(node string, err error) {
		o.log.Warn("cannot remove the pods of a node that is gone", "node", node, "error", err)
	})
}

// work does what is queued, one after the other, until ctx ends; what fails is
// told and tried again later.
func work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string], do func(context.Context, string) error, failed func(string, error)) {
	stop := context.AfterFunc(ctx, queue.ShutDown)
	defer stop()
	for {
		key, quit := queue.Get()
		if quit {
			return
		}
		if err := do(ctx, key); err != nil && ctx.Err() == nil {
			failed(key, err)
			queue.AddRateLimited(key)
		} else {
			queue.Forget(key)
		}
		queue.Done(key)
	}
}

func (o *orphans) look(ctx context.Context, name string) error {
	if _, err := o.nodes.Get(name); err == nil {
		return nil
	}
	objs, err := o.pods.ByIndex(byNode, name)
	if err != nil || len(objs) == 0 {
		return err
	}
	// The cache may be behind: the node may have just joined.
	_, err = o.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot find out whether node %s is there: %w", name, err)
	}
	for _, obj := range objs {
		if err := o.remove(ctx, obj.(*corev1.Pod)); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return err
		}
	}
	return nil
}

// remove marks a pod as failed, for those who watch it, and deletes it without
// waiting for anybody.
func (o *orphans) remove(ctx context.Context, pod *corev1.Pod) error {
	if placement.Occupies(pod) {
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"uid": pod.UID},
			"status": map[string]any{
				"phase": corev1.PodFailed,
				"conditions": []corev1.PodCondition{{
					Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC",
					Message: "PodGC: node no longer exists", LastTransitionTime: metav1.Now(),
				}},
			},
		})
		if err != nil {
			return err
		}
		if _, err := o.client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			return fmt.Errorf("cannot mark pod %s/%s as failed: %w", pod.Namespace, pod.Name, err)
		}
	}
	o.log.Info("removing a pod whose node is gone", "pod", pod.Namespace+"/"+pod.Name, "node", pod.Spec.NodeName)
	now := int64(0)
	err := o.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
	if err != nil {
		return fmt.Errorf("cannot delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
