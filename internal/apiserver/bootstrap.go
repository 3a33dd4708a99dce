package apiserver

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	schedulingv1 "k8s.io/kubernetes/pkg/apis/scheduling/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// HostRuntimeClass is the RuntimeClass, and the handler, of pods that run as
// processes of the host.
const HostRuntimeClass = "host"

// OCIRuntimeClass is that of pods that run images; without a class they do, too.
const OCIRuntimeClass = "oci"

// bootstrapTime bounds how long a server tries to put into its store what must
// be there.
const bootstrapTime = 30 * time.Second

// bootstrap puts into the store what every fleet has: upstream's default roles
// and bindings, its two priority classes, and our RuntimeClass. Upstream's own
// hooks do the first two one by one, after waiting a second. The roles of
// upstream's controllers are left out: those here run with all rights.
func bootstrap(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, bootstrapTime)
	defer cancel()
	for {
		err := bootstrapOnce(ctx, client)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot put the default roles and classes into the store: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func bootstrapOnce(ctx context.Context, client kubernetes.Interface) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, step := range policySteps(client) {
		group.Go(func() error {
			return retry.OnError(retry.DefaultBackoff, func(err error) bool {
				return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsServiceUnavailable(err)
			}, step)
		})
	}
	for _, class := range schedulingv1.SystemPriorityClasses() {
		group.Go(func() error {
			if _, err := client.SchedulingV1().PriorityClasses().Get(ctx, class.Name, metav1.GetOptions{}); err == nil {
				return nil
			}
			_, err := client.SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{})
			return unlessThere(err, "priority class "+class.Name)
		})
	}
	for _, name := range []string{HostRuntimeClass, OCIRuntimeClass} {
		group.Go(func() error {
			if _, err := client.NodeV1().RuntimeClasses().Get(ctx, name, metav1.GetOptions{}); err == nil {
				return nil
			}
			class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: name}
			_, err := client.NodeV1().RuntimeClasses().Create(ctx, class, metav1.CreateOptions{})
			return unlessThere(err, "RuntimeClass "+name)
		})
	}
	return group.Wait()
}

func unlessThere(err error, what string) error {
	if err == nil || apierrors.IsAlreadyExists(err) {
		return nil
	}
	return fmt.Errorf("cannot make the %s: %w", what, err)
}

// policySteps bring upstream's default roles and bindings up to date; each adds
// what is missing and keeps what an administrator has added.
func policySteps(client kubernetes.Interface) []func() error {
	rbac, namespaces := client.RbacV1(), client.CoreV1().Namespaces()
	var steps []func() error
	role := func(owner reconciliation.RuleOwner, modifier reconciliation.RuleOwnerModifier) {
		steps = append(steps, func() error {
			_, err := (&reconciliation.ReconcileRoleOptions{Role: owner, Client: modifier, Confirm: true}).Run()
			return describe(err, "role", owner.GetName())
		})
	}
	binding := func(wanted reconciliation.RoleBinding, modifier reconciliation.RoleBindingModifier) {
		steps = append(steps, func() error {
			_, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: wanted, Client: modifier, Confirm: true}).Run()
			return describe(err, "role binding", wanted.GetName())
		})
	}
	for _, r := range bootstrappolicy.ClusterRoles() {
		role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &r}, reconciliation.ClusterRoleModifier{Client: rbac.ClusterRoles()})
	}
	for _, b := range bootstrappolicy.ClusterRoleBindings() {
		binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b}, reconciliation.ClusterRoleBindingClientAdapter{Client: rbac.ClusterRoleBindings()})
	}
	eachOf(bootstrappolicy.NamespaceRoles(), func(r *rbacv1.Role) {
		role(reconciliation.RoleRuleOwner{Role: r}, reconciliation.RoleModifier{Client: rbac, NamespaceClient: namespaces})
	})
	eachOf(bootstrappolicy.NamespaceRoleBindings(), func(b *rbacv1.RoleBinding) {
		binding(reconciliation.RoleBindingAdapter{RoleBinding: b}, reconciliation.RoleBindingClientAdapter{Client: rbac, NamespaceClient: namespaces})
	})
	return steps
}

func eachOf[T any](byNamespace map[string][]T, do func(*T)) {
	for _, list := range byNamespace {
		for i := range list {
			do(&list[i])
		}
	}
}

// describe keeps the error's own type, by which the caller decides to retry.
func describe(err error, kind, name string) error {
	if err == nil {
		return nil
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		return err
	}
	return fmt.Errorf("%s %s: %w", kind, name, err)
}
