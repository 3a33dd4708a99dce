package agent

import (
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

// TestEviction: a pod that takes more of the disk than it may is stopped at once,
// fails with what was too much, and is not run again.
func TestEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := play(t)
		s.listed()
		s.synced()
		limit := resource.MustParse("1Mi")
		p := s.add("web", func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "scratch", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: &limit}}}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "scratch", MountPath: "/scratch"}}
		})
		name := podspec.GroupName(p.UID)
		sink{s.ctx, s.p}.Changed(p)
		synctest.Wait()
		s.host(name, running(1))
		time.Sleep(3 * lookEvery)
		synctest.Wait()
		dir := podspec.VolumeDir("", string(p.UID), "scratch")
		s.mu.Lock()
		if phase := s.pods[p.UID].Status.Phase; phase != v1.PodRunning {
			t.Errorf("before, it is %s", phase)
		}
		s.log, s.usage = nil, map[string]int64{dir: limit.Value()}
		s.mu.Unlock()
		time.Sleep(lookEvery)
		s.expect() // all of it may be used
		s.mu.Lock()
		s.usage = map[string]int64{dir: limit.Value() + 1}
		s.mu.Unlock()
		time.Sleep(lookEvery)
		synctest.Wait()
		s.expectSet("stop "+name+" within 1s", "event web Evicted", "put "+name+" boot=false")
		ended := running(1)
		ended.State, ended.Ready, ended.Main.Exit = service.Dead, false, &service.Exit{At: time.Now(), Signal: 15}
		s.host(name, ended)
		synctest.Wait()
		s.mu.Lock()
		got := s.pods[p.UID].Status
		s.log = nil
		s.mu.Unlock()
		if got.Phase != v1.PodFailed || got.Reason != "Evicted" || got.Message != `Usage of EmptyDir volume "scratch" exceeds the limit "1Mi". ` {
			t.Errorf("it is %s %s %s", got.Phase, got.Reason, got.Message)
		}
		time.Sleep(time.Hour)
		s.expect()
	})
}
