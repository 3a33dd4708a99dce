package apiserver

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime"
)

// Numbers of protobuf fields (k8s.io/apimachinery/pkg/runtime/generated.proto,
// k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto, k8s.io/api/core/v1/generated.proto).
const (
	unknownTypeMeta, unknownRaw     = 1, 2
	podMetadata, podSpecField       = 1, 2
	specNodeName, specAffinity      = 10, 18
	metaGenerateName, metaNamespace = 2, 3
	metaLabels, metaOwners          = 11, 13
)

var (
	// protobufMark begins what Kubernetes stores as protobuf.
	protobufMark = []byte{'k', '8', 's', 0}
	// podType is how the TypeMeta of a stored pod is encoded.
	podType, _ = (&runtime.TypeMeta{APIVersion: "v1", Kind: "Pod"}).Marshal()
)

// podBytes are the parts of an encoded pod. The spec is without the node's name
// and the affinity, which is as it is encoded in a spec.
type podBytes struct{ meta, spec, affinity, node, status []byte }

// splitPod takes apart what is a pod as this server encodes it. It appends the
// spec to scratch.
func splitPod(data, scratch []byte) (podBytes, bool) {
	data, ok := bytes.CutPrefix(data, protobufMark)
	if !ok {
		return podBytes{}, false
	}
	var raw []byte
	typed := false
	if !eachField(data, func(number protowire.Number, _, value []byte) bool {
		switch number {
		case unknownTypeMeta:
			typed = bytes.Equal(value, podType)
			return typed
		case unknownRaw:
			raw = value
			return true
		}
		return len(value) == 0
	}) || !typed {
		return podBytes{}, false
	}
	var pod podBytes
	var spec []byte
	if !eachField(raw, func(number protowire.Number, _, value []byte) bool {
		for i, into := range []*[]byte{&pod.meta, &spec, &pod.status} {
			if number == protowire.Number(podMetadata+i) && *into == nil {
				*into = value
				return true
			}
		}
		return false
	}) || spec == nil {
		return podBytes{}, false
	}
	pod.spec = scratch
	ok = eachField(spec, func(number protowire.Number, field, value []byte) bool {
		switch {
		case number == specNodeName && pod.node == nil:
			pod.node = value
		case number == specAffinity && pod.affinity == nil:
			pod.affinity = field
		case number == specNodeName || number == specAffinity:
			return false
		default:
			pod.spec = append(pod.spec, field...)
		}
		return true
	})
	return pod, ok
}

// part appends to chosen the fields of a message that are chosen, to others the others.
func part(data, chosen, others []byte, choose func(protowire.Number) bool) ([]byte, []byte, bool) {
	ok := eachField(data, func(number protowire.Number, field, _ []byte) bool {
		if choose(number) {
			chosen = append(chosen, field...)
		} else {
			others = append(others, field...)
		}
		return true
	})
	return chosen, others, ok
}

// eachField calls with each field of a message, whole and, of those that have a
// length, the value alone, until that returns false. It says whether all was well.
func eachField(data []byte, do func(number protowire.Number, field, value []byte) bool) bool {
	for len(data) > 0 {
		number, kind, tag := protowire.ConsumeTag(data)
		if tag < 0 {
			return false
		}
		length := protowire.ConsumeFieldValue(number, kind, data[tag:])
		if length < 0 {
			return false
		}
		var value []byte
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(data[tag:])
		}
		if !do(number, data[:tag+length], value) {
			return false
		}
		data = data[tag+length:]
	}
	return true
}
