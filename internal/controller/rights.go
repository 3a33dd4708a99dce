package controller

import (
	"context"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

// Rules are what the controllers of a process outside of the API server need to
// be allowed: in the whole cluster, and in the namespace of their Lease.
func Rules(rolloutsOnly bool) (cluster, lease []rbacv1.PolicyRule) {
	rule := func(group, resource string, verbs ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: verbs}
	}
	lease = []rbacv1.PolicyRule{rule("coordination.k8s.io", "leases", "get", "watch", "create", "update")}
	cluster = []rbacv1.PolicyRule{
		rule("", "nodes", "list", "watch"),
		rule("node.k8s.io", "runtimeclasses", "list", "watch"),
		rule("", "events", "create", "patch"),
		rule("apps", "daemonsets/status", "patch", "update"),
	}
	if rolloutsOnly {
		return append(
			cluster,
			rule("", "pods", "get", "list", "watch", "delete"),
			rule("apps", "daemonsets", "list", "watch", "patch"),
			rule("apps", "controllerrevisions", "list", "watch"),
		), lease
	}
	return append(
		cluster,
		rule("", "pods", "get", "list", "watch", "create", "delete", "patch"),
		// create and delete: to find out whether another controller is active.
		rule("apps", "daemonsets", "get", "list", "watch", "create", "delete", "patch"),
		rule("apps", "daemonsets/finalizers", "update"),
		rule("apps", "controllerrevisions", "get", "list", "watch", "create", "update", "patch", "delete"),
	), lease
}

// RoleName names the objects that give the rights.
const RoleName = "legion-controller"

// RBAC are manifests that give the rights to a service account of the Lease's
// namespace, which is among them.
func RBAC(rolloutsOnly bool, namespace string) ([]byte, error) {
	cluster, lease := Rules(rolloutsOnly)
	meta := metav1.ObjectMeta{Name: RoleName}
	local := metav1.ObjectMeta{Name: RoleName, Namespace: namespace}
	subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: RoleName, Namespace: namespace}}
	kind := func(k string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: k}
	}
	ref := func(k string) rbacv1.RoleRef {
		return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: k, Name: RoleName}
	}
	var text strings.Builder
	for _, o := range []runtime.Object{
		&corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: local},
		&rbacv1.ClusterRole{TypeMeta: kind("ClusterRole"), ObjectMeta: meta, Rules: cluster},
		&rbacv1.ClusterRoleBinding{TypeMeta: kind("ClusterRoleBinding"), ObjectMeta: meta, Subjects: subjects, RoleRef: ref("ClusterRole")},
		&rbacv1.Role{TypeMeta: kind("Role"), ObjectMeta: local, Rules: lease},
		&rbacv1.RoleBinding{TypeMeta: kind("RoleBinding"), ObjectMeta: local, Subjects: subjects, RoleRef: ref("Role")},
	} {
		y, err := yaml.Marshal(o)
		if err != nil {
			return nil, fmt.Errorf("cannot write a manifest: %w", err)
		}
		text.WriteString("---\n")
		text.Write(y)
	}
	return []byte(text.String()), nil
}

// MissingRights asks the API server which of the rights the client lacks, as
// "delete pods" or "update leases.coordination.k8s.io in namespace kube-system".
func MissingRights(ctx context.Context, client kubernetes.Interface, rolloutsOnly bool, namespace string) ([]string, error) {
	cluster, lease := Rules(rolloutsOnly)
	var missing []string
	ask := func(rules []rbacv1.PolicyRule, namespace string) error {
		for _, r := range rules {
			resource, sub, _ := strings.Cut(r.Resources[0], "/")
			var lacks []string
			for _, verb := range r.Verbs {
				review, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
					Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
						Namespace: namespace, Verb: verb, Group: r.APIGroups[0], Resource: resource, Subresource: sub,
					}},
				}, metav1.CreateOptions{})
				if err != nil {
					return fmt.Errorf("cannot find out what the cluster allows: %w", err)
				}
				if !review.Status.Allowed {
					lacks = append(lacks, verb)
				}
			}
			if len(lacks) == 0 {
				continue
			}
			what := r.Resources[0]
			if g := r.APIGroups[0]; g != "" {
				what += "." + g
			}
			if namespace != "" {
				what += " in namespace " + namespace
			}
			missing = append(missing, strings.Join(lacks, ", ")+" "+what)
		}
		return nil
	}
	if err := ask(cluster, ""); err != nil {
		return nil, err
	}
	if err := ask(lease, namespace); err != nil {
		return nil, err
	}
	return missing, nil
}
