package agent

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/podview"
	"legion.dev/legion/internal/service"
)

// TestResize: what the node has no room for is refused, for ever or until others
// leave; what the host has set is shown, and what it could not set is not.
func TestResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		cpu := func(text string) v1.ResourceList { return v1.ResourceList{v1.ResourceCPU: resource.MustParse(text)} }
		s.p.node.Allocatable = cpu("4")
		asks := func(text string) func(*v1.Pod) {
			return func(p *v1.Pod) {
				p.Generation++
				p.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: cpu(text), Limits: cpu(text)}
			}
		}
		s.listed()
		s.synced()
		a, b := s.add("a", asks("1")), s.add("b", asks("1"))
		for _, p := range []*v1.Pod{a, b} {
			sink{s.ctx, s.p}.Changed(p)
		}
		synctest.Wait()
		host := func(p *v1.Pod, lost ...string) {
			st := running(1)
			st.Name, st.Lost = "c", lost
			group, _ := podspec.Compile(p, s.p.node, nil)
			st.Bounds = group.Services[0].Resources
			s.p.HostEvent(s.ctx, hostapi.Event{Type: hostapi.Changed, Name: podspec.GroupName(p.UID), Group: &hostapi.Group{
				Spec: group, Status: service.GroupStatus{Name: group.Name, Services: []service.Status{st}},
			}})
			synctest.Wait()
		}
		host(a)
		host(b)
		puts := func() int {
			s.mu.Lock()
			defer s.mu.Unlock()
			n := 0
			for _, line := range s.log {
				if line == "put pod-u-a boot=true" {
					n++
				}
			}
			s.log = nil
			return n
		}
		puts()
		expect := func(when, want string, put int) {
			t.Helper()
			synctest.Wait()
			s.mu.Lock()
			st := s.pods["u-a"].Status
			s.mu.Unlock()
			got := st.ContainerStatuses[0].AllocatedResources.Cpu().String() + " " + st.ContainerStatuses[0].Resources.Limits.Cpu().String()
			for _, kind := range []v1.PodConditionType{v1.PodResizePending, v1.PodResizeInProgress} {
				if c := podview.Condition(&st, kind); c != nil {
					got += fmt.Sprintf("; %s %s %s", kind, c.Reason, c.Message)
				}
			}
			if n := puts(); got != want || n != put {
				t.Errorf("%s: %s, and %d were put, want %s and %d", when, got, n, want, put)
			}
		}
		expect("at first", "1 1", 0)
		s.edit("u-a", asks("5"))
		expect("too much", "1 1; PodResizePending Infeasible the node can never give that: Insufficient cpu: 5 requested, 4 of 4 free", 0)
		s.edit("u-a", asks("3500m"))
		expect("too much now", "1 1; PodResizePending Deferred other pods have it now: Insufficient cpu: 3500m requested, 3 of 4 free", 0)
		s.edit("u-b", asks("500m"))
		time.Sleep(lookEvery)
		expect("there is room", "3500m 1; PodResizeInProgress  ", 1)
		host(s.pods["u-a"])
		expect("done", "3500m 3500m", 0)
		s.edit("u-a", asks("2"))
		expect("less", "2 3500m; PodResizeInProgress  ", 1)
		host(s.pods["u-a"], "CPUQuota=: no such controller")
		expect("not to be had", "2 3500m; PodResizeInProgress Error this machine cannot: c: CPUQuota=: no such controller", 0)
		s.edit("u-a", asks("3500m"))
		host(s.pods["u-a"])
		expect("back", "3500m 3500m", 1)
	})
}
