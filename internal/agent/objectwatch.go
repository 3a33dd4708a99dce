package agent

import (
	"context"
	"math/rand/v2"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	"legion.dev/legion/internal/podspec"
)

// doubt is how long a refusal to read an object is not told: the server may
// learn only now that a pod of this node refers to it.
const doubt = 2 * time.Second

// WatchObject tells of one object until ctx ends. List and watch select it by
// its name, which is how the Node authorizer allows it.
func (c *client) WatchObject(ctx context.Context, namespace string, ref podspec.Ref, told func(*podspec.Object)) {
	if ref == rootCA {
		c.pollRootCA(ctx, namespace, told)
		return
	}
	resource, object := "configmaps", runtime.Object(&v1.ConfigMap{})
	if ref.Kind == podspec.Secret {
		resource, object = "secrets", &v1.Secret{}
	}
	began := time.Now()
	last := ""
	outcome := func(err error) {
		switch {
		case err == nil:
			last = ""
		case ctx.Err() == nil && time.Since(began) > doubt && err.Error() != last:
			last = err.Error()
			told(&podspec.Object{Trouble: last})
		}
	}
	named := cache.NewListWatchFromClient(c.core, resource, namespace, fields.OneTermEqualSelector(metav1.ObjectNameField, ref.Name))
	follow(ctx, named, object, objectStore{told}, pace{50 * time.Millisecond, 5 * time.Second}, outcome)
}

// rootCA is what every pod with a token has; in a whole fleet that would be a
// watch for each node and namespace, of something that never changes.
var rootCA = podspec.Ref{Kind: podspec.ConfigMap, Name: "kube-root-ca.crt"}

// pollRootCA reads it until it is there, and then every now and then.
func (c *client) pollRootCA(ctx context.Context, namespace string, told func(*podspec.Object)) {
	const least, most, again = 100 * time.Millisecond, 5 * time.Second, 30 * time.Minute
	began := time.Now()
	for pause := least; ctx.Err() == nil; {
		object := &v1.ConfigMap{}
		err := c.core.Get().Namespace(namespace).Resource("configmaps").Name(rootCA.Name).Timeout(callTimeout).Do(ctx).Into(object)
		wait := pause
		pause = min(2*pause, most)
		switch late := time.Since(began) > doubt; {
		case err == nil:
			told(contents(object))
			began, pause, wait = time.Now(), least, again/2+rand.N(again)
		case late && apierrors.IsNotFound(err):
			told(nil)
		case late && ctx.Err() == nil:
			told(&podspec.Object{Trouble: err.Error()})
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// objectStore is the reflector's store of one object, without storing.
type objectStore struct{ told func(*podspec.Object) }

func (s objectStore) Add(obj any) error {
	s.told(contents(obj))
	return nil
}

func (s objectStore) Update(obj any) error { return s.Add(obj) }

func (s objectStore) Delete(any) error {
	s.told(nil)
	return nil
}

func (s objectStore) Replace(list []any, _ string) error {
	if len(list) == 0 {
		s.told(nil)
		return nil
	}
	return s.Add(list[0])
}

func (s objectStore) Resync() error { return nil }

// contents is what pods see of an object.
func contents(obj any) *podspec.Object {
	switch o := obj.(type) {
	case *v1.ConfigMap:
		data := make(map[string][]byte, len(o.Data))
		for key, value := range o.Data {
			data[key] = []byte(value)
		}
		return &podspec.Object{Data: data, Binary: o.BinaryData}
	case *v1.Secret:
		return &podspec.Object{Data: o.Data}
	default:
		return nil
	}
}
