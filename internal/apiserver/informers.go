package apiserver

import (
	"context"

	corev1api "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/admissionregistration"
	"k8s.io/client-go/informers/certificates"
	"k8s.io/client-go/informers/core"
	corev1 "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/informers/storage"

	"legion.dev/legion/internal/daemonset"
)

// servedInformers is an informer factory for upstream code that also asks for
// resources this server does not have: volumes, device claims, webhooks. Those
// come from a factory that is never started, so their caches are empty and
// nobody lists what does not exist.
type servedInformers struct {
	informers.SharedInformerFactory
	absent informers.SharedInformerFactory
}

// livingInformers are the informers for who uses them for a part of the
// server's life: they go on until that ends.
type livingInformers struct {
	servedInformers
	life context.Context
}

func (f livingInformers) Start(<-chan struct{}) { f.servedInformers.Start(f.life.Done()) }

func (f livingInformers) StartWithContext(context.Context) { f.servedInformers.Start(f.life.Done()) }
func (f livingInformers) Shutdown()                        {}

// slim drops from the objects of the informers what neither upstream's code in
// this process reads nor Legion's controllers, and has the rest shared.
func (p *pool) slim(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil && accessor.GetManagedFields() != nil {
		accessor.SetManagedFields(nil)
	}
	switch o := obj.(type) {
	case *corev1api.Pod:
		// The Node authorizer asks whether a pod is a mirror pod.
		mirror, ok := o.Annotations[corev1api.MirrorPodAnnotationKey]
		if o.Annotations = nil; ok {
			o.Annotations = map[string]string{corev1api.MirrorPodAnnotationKey: mirror}
		}
		if o.Spec.NodeName != "" {
			o.Spec.Affinity = nil
		}
		daemonset.SlimStatus(o)
	case *corev1api.Node:
		o.Status.Images, o.Annotations = nil, nil
	}
	if o, ok := obj.(runtime.Object); ok {
		p.share(o)
	}
	return obj, nil
}

func (f servedInformers) Admissionregistration() admissionregistration.Interface {
	return f.absent.Admissionregistration()
}

func (f servedInformers) Certificates() certificates.Interface { return f.absent.Certificates() }
func (f servedInformers) Resource() resource.Interface         { return f.absent.Resource() }
func (f servedInformers) Storage() storage.Interface           { return f.absent.Storage() }
func (f servedInformers) Core() core.Interface                 { return servedCore{f} }

type servedCore struct{ factory servedInformers }

func (c servedCore) V1() corev1.Interface {
	return servedCoreV1{c.factory.SharedInformerFactory.Core().V1(), c.factory.absent.Core().V1()}
}

type servedCoreV1 struct {
	corev1.Interface
	absent corev1.Interface
}

func (c servedCoreV1) PersistentVolumes() corev1.TypedPersistentVolumeInformer {
	return c.absent.PersistentVolumes()
}

func (c servedCoreV1) PersistentVolumeClaims() corev1.TypedPersistentVolumeClaimInformer {
	return c.absent.PersistentVolumeClaims()
}

func (c servedCoreV1) LimitRanges() corev1.TypedLimitRangeInformer {
	return c.absent.LimitRanges()
}

func (c servedCoreV1) ResourceQuotas() corev1.TypedResourceQuotaInformer {
	return c.absent.ResourceQuotas()
}
