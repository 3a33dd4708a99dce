package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// wire sends what a kubelet sends all the time: renewals, statuses, removals.
// The bytes are those of client-go; what client-go does around them, for each
// of thousands of nodes, is spared, so that the machine on which a fleet is
// simulated is there for the control plane.
type wire struct {
	client *http.Client
	base   string
}

const protobufType = runtime.ContentTypeProtobuf

var serializer = protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)

func newWire(config *rest.Config) (*wire, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	url, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	return &wire{client, strings.TrimSuffix(url.String(), "/")}, nil
}

// do sends a request and returns what is answered, as read. An error of the
// API is the one that client-go makes of it.
func (w *wire) do(ctx context.Context, method, path, contentType string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, w.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header["Content-Type"] = []string{contentType}
	request.Header["Accept"] = []string{protobufType + ",application/json"}
	response, err := w.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode < http.StatusBadRequest {
		return answer, err
	}
	if obj, err := runtime.Decode(scheme.Codecs.UniversalDeserializer(), answer); err == nil {
		if status, ok := obj.(*metav1.Status); ok {
			return nil, &apierrors.StatusError{ErrStatus: *status}
		}
	}
	return nil, apierrors.NewGenericServerResponse(response.StatusCode, method, schema.GroupResource{}, path, string(answer), 0, true)
}

func encode(obj runtime.Object, version schema.GroupVersion) ([]byte, error) {
	return runtime.Encode(scheme.Codecs.EncoderForVersion(serializer, version), obj)
}

// patchStatus sends a strategic merge patch of a pod's status.
func (w *wire) patchStatus(ctx context.Context, namespace, name string, patch []byte) error {
	_, err := w.do(ctx, http.MethodPatch, "/api/v1/namespaces/"+namespace+"/pods/"+name+"/status", string(types.StrategicMergePatchType), patch)
	return err
}

func (w *wire) deletePod(ctx context.Context, namespace, name string, options metav1.DeleteOptions) error {
	body, err := encode(&options, schema.GroupVersion{Version: "v1"})
	if err != nil {
		return err
	}
	_, err = w.do(ctx, http.MethodDelete, "/api/v1/namespaces/"+namespace+"/pods/"+name, protobufType, body)
	return err
}

func (w *wire) updateLease(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	body, err := encode(lease, coordinationv1.SchemeGroupVersion)
	if err != nil {
		return nil, err
	}
	answer, err := w.do(ctx, http.MethodPut, "/apis/coordination.k8s.io/v1/namespaces/"+lease.Namespace+"/leases/"+lease.Name, protobufType, body)
	if err != nil {
		return nil, err
	}
	updated := &coordinationv1.Lease{}
	if _, _, err := serializer.Decode(answer, nil, updated); err != nil {
		return nil, fmt.Errorf("cannot read the lease %s that was answered: %w", lease.Name, err)
	}
	return updated, nil
}
