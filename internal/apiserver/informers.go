package apiserver

import (
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/admissionregistration"
	"k8s.io/client-go/informers/certificates"
	"k8s.io/client-go/informers/core"
	corev1 "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/informers/storage"
)

// servedInformers is an informer factory for upstream code that also asks for
// resources this server does not have: volumes, device claims, webhooks. Those
// come from a factory that is never started, so their caches are empty and
// nobody lists what does not exist.
type servedInformers struct {
	informers.SharedInformerFactory
	absent informers.SharedInformerFactory
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
