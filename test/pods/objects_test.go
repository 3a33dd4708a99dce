package pods

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// apply makes the objects of a manifest, or makes ConfigMaps and Secrets what
// it says.
func (s *script) apply(ctx context.Context, text string) error {
	for r := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(s.replace.Replace(text)))); ; {
		doc, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		var kind metav1.TypeMeta
		if err == nil {
			err = yaml.Unmarshal(doc, &kind)
		}
		if err == nil {
			err = s.applyOne(ctx, kind.Kind, doc)
		}
		if err != nil {
			return fmt.Errorf("%w\n%s", err, doc)
		}
	}
}

func (s *script) applyOne(ctx context.Context, kind string, doc []byte) error {
	core := s.fleet.api.CoreV1()
	switch kind {
	case "Pod":
		pod := &corev1.Pod{}
		if err := yaml.UnmarshalStrict(doc, pod); err != nil {
			return err
		}
		s.complete(pod)
		_, err := core.Pods(s.namespace).Create(ctx, pod, metav1.CreateOptions{})
		return err
	case "ConfigMap":
		o := &corev1.ConfigMap{}
		if err := yaml.UnmarshalStrict(doc, o); err != nil {
			return err
		}
		_, err := core.ConfigMaps(s.namespace).Create(ctx, o, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = core.ConfigMaps(s.namespace).Update(ctx, o, metav1.UpdateOptions{})
		}
		return err
	case "ServiceAccount":
		o := &corev1.ServiceAccount{}
		if err := yaml.UnmarshalStrict(doc, o); err != nil {
			return err
		}
		_, err := core.ServiceAccounts(s.namespace).Create(ctx, o, metav1.CreateOptions{})
		return err
	case "Secret":
		o := &corev1.Secret{}
		if err := yaml.UnmarshalStrict(doc, o); err != nil {
			return err
		}
		_, err := core.Secrets(s.namespace).Create(ctx, o, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			_, err = core.Secrets(s.namespace).Update(ctx, o, metav1.UpdateOptions{})
		}
		return err
	}
	return fmt.Errorf("kind %q is none that scripts make", kind)
}

// complete gives a pod what each would have to say: the runtime, the node, and
// the program of a container that names none. A container of an image then has
// the image's entrypoint.
func (s *script) complete(pod *corev1.Pod) {
	spec := &pod.Spec
	spec.NodeName, spec.RuntimeClassName = node, &s.runtime
	if spec.TerminationGracePeriodSeconds == nil {
		spec.TerminationGracePeriodSeconds = new(int64(5))
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			c := &list[i]
			if c.Image == "" {
				c.Image = "standin:v1"
			}
			if len(c.Command) == 0 && s.runtime == hostRuntime {
				c.Command = []string{s.fleet.standin}
			}
		}
	}
}

// prepare makes the script's namespace, and waits until pods can be made in it.
func (s *script) prepare(ctx context.Context) error {
	core := s.fleet.api.CoreV1()
	if _, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	w, err := core.ServiceAccounts(s.namespace).Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", "default").String()})
	if err != nil {
		return err
	}
	defer w.Stop()
	if _, ok := <-w.ResultChan(); !ok {
		return fmt.Errorf("namespace %s has no service account: %w", s.namespace, context.Cause(ctx))
	}
	return nil
}

// log reads a container's log, to its end or until enough of it is there.
func (s *script) log(ctx context.Context, pod, container string, previous bool, enough func(lines []string) bool) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	options := &corev1.PodLogOptions{Container: container, Previous: previous, Follow: enough != nil}
	var stream io.ReadCloser
	for {
		news := s.news()
		var err error
		stream, err = s.fleet.api.CoreV1().Pods(s.namespace).GetLogs(pod, options).Stream(ctx)
		if err == nil {
			break
		}
		// A container that does not run yet has no log to follow.
		// Nor has a pod of which its node has not heard.
		if enough == nil || ctx.Err() != nil || !apierrors.IsBadRequest(err) && !apierrors.IsNotFound(err) {
			return nil, err
		}
		select {
		case <-news:
		case <-time.After(time.Second):
		}
	}
	defer stream.Close()
	var out []string
	for r := bufio.NewScanner(stream); r.Scan(); {
		out = append(out, r.Text())
		if enough != nil && enough(out) {
			return out, nil
		}
	}
	if enough != nil && ctx.Err() != nil {
		return out, ctx.Err()
	}
	return out, nil
}
