package apiserver

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// Fenced returns a client for controllers that must stop to write at a moment's
// notice: what takes the direct way is begun with begin, done under the context
// that it returns, and its end is told. The rest goes through base, which is
// fenced already.
func (i Inside) Fenced(base kubernetes.Interface, begin Begin) kubernetes.Interface {
	if c, ok := i.Client.(*directClient); ok {
		return &fencedClient{directClient{base, c.direct}, begin}
	}
	return base
}

// Begin begins a write, or says why it may not be.
type Begin = func(context.Context) (writing context.Context, done func(), err error)

type fencedClient struct {
	directClient
	begin Begin
}

func (c *fencedClient) CoreV1() typedcorev1.CoreV1Interface {
	if core, ok := c.directClient.CoreV1().(*directCore); ok {
		return &fencedCore{core, c.begin}
	}
	return c.Interface.CoreV1()
}

type fencedCore struct {
	*directCore
	begin Begin
}

func (c *fencedCore) Pods(namespace string) typedcorev1.PodInterface {
	return &fencedPods{c.directCore.Pods(namespace), c.begin}
}

// fencedPods fences the writes that directPods has of its own.
type fencedPods struct {
	typedcorev1.PodInterface
	begin Begin
}

func (p *fencedPods) Create(ctx context.Context, pod *corev1.Pod, options metav1.CreateOptions) (*corev1.Pod, error) {
	ctx, done, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return p.PodInterface.Create(ctx, pod, options)
}

func (p *fencedPods) Delete(ctx context.Context, name string, options metav1.DeleteOptions) error {
	ctx, done, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return p.PodInterface.Delete(ctx, name, options)
}
