package apiserver

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Fenced returns a client for controllers that must stop to write at a moment's
// notice: what takes the direct way is done while allow returns nil. The rest
// goes through base, which is fenced already.
func (i Inside) Fenced(base kubernetes.Interface, allow func() error) kubernetes.Interface {
	if c, ok := i.Client.(*directClient); ok {
		return &fencedClient{directClient{base, c.direct}, allow}
	}
	return base
}

type fencedClient struct {
	directClient
	allow func() error
}

func (c *fencedClient) CoreV1() typedcorev1.CoreV1Interface {
	if core, ok := c.directClient.CoreV1().(*directCore); ok {
		return &fencedCore{core, c.allow}
	}
	return c.Interface.CoreV1()
}

type fencedCore struct {
	*directCore
	allow func() error
}

func (c *fencedCore) Pods(namespace string) typedcorev1.PodInterface {
	return &fencedPods{c.directCore.Pods(namespace), c.allow}
}

// fencedPods fences the writes that directPods has of its own.
type fencedPods struct {
	typedcorev1.PodInterface
	allow func() error
}

func (p *fencedPods) Create(ctx context.Context, pod *corev1.Pod, options metav1.CreateOptions) (*corev1.Pod, error) {
	if err := p.allow(); err != nil {
		return nil, err
	}
	return p.PodInterface.Create(ctx, pod, options)
}

func (p *fencedPods) Delete(ctx context.Context, name string, options metav1.DeleteOptions) error {
	if err := p.allow(); err != nil {
		return err
	}
	return p.PodInterface.Delete(ctx, name, options)
}
