package podview

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/service"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// script is a pod's life: what the agent learns, step by step.
type script struct {
	RestartPolicy v1.RestartPolicy `json:"restartPolicy"`
	Gates         []string         `json:"gates,omitempty"`
	Init          bool             `json:"init,omitempty"`
	Sidecar       bool             `json:"sidecar,omitempty"`
	// All: where the container ends with 42, all start again.
	All   bool `json:"all,omitempty"`
	Steps []struct {
		// At is in seconds after the start of the script.
		At       int               `json:"at"`
		Does     string            `json:"does"`
		Services []service.Status  `json:"services,omitempty"`
		Gone     bool              `json:"gone,omitempty"`
		Refusal  string            `json:"refusal,omitempty"`
		Expired  bool              `json:"expired,omitempty"`
		Report   podspec.Report    `json:"report,omitempty"`
		Foreign  []v1.PodCondition `json:"foreign,omitempty"`
	} `json:"steps"`
}

var zero = time.Date(2030, 1, 2, 3, 4, 0, 0, time.UTC)

// TestLives plays each testdata/*.yaml and compares the statuses with the .txt
// beside it; go test -rewrite writes them.
func TestLives(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var s script
			if err := yaml.UnmarshalStrict(text, &s); err != nil {
				t.Fatal(err)
			}
			got := play(t, s)
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *rewrite {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s (go test -rewrite, then look at the diff):\n%s", golden, got)
			}
		})
	}
}

func play(t *testing.T, s script) []byte {
	t.Helper()
	pod := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: s.RestartPolicy}}
	pod.Name, pod.Namespace, pod.UID, pod.Generation = "p", "ns", "u1", 1
	pod.Spec.Containers = []v1.Container{{Name: "c", Image: "none"}}
	if s.All {
		pod.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{
			Action:    v1.ContainerRestartRuleActionRestartAllContainers,
			ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
		}}
	}
	if s.Init {
		pod.Spec.InitContainers = []v1.Container{{Name: "i", Image: "none"}}
	}
	if s.Sidecar {
		always := v1.ContainerRestartPolicyAlways
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, v1.Container{Name: "s", Image: "none", RestartPolicy: &always})
	}
	for _, g := range s.Gates {
		pod.Spec.ReadinessGates = append(pod.Spec.ReadinessGates, v1.PodReadinessGate{ConditionType: v1.PodConditionType(g)})
	}
	var prev *v1.PodStatus
	var out bytes.Buffer
	for _, step := range s.Steps {
		in := Input{
			Pod: pod, Previous: prev, Gone: step.Gone, Refusal: step.Refusal, Expired: step.Expired, Report: step.Report,
			NodeIP: "10.0.0.7", Now: zero.Add(time.Duration(step.At) * time.Second),
		}
		if step.Services != nil {
			in.Group = &service.GroupStatus{Services: step.Services}
		}
		if prev != nil {
			prev.Conditions = append(prev.Conditions, step.Foreign...)
		}
		status := Status(in)
		again := Status(Input{
			Pod: pod, Previous: &status, Group: in.Group, Gone: in.Gone, Refusal: in.Refusal, Expired: in.Expired, Report: in.Report,
			NodeIP: in.NodeIP, Now: in.Now.Add(time.Hour),
		})
		first, _ := json.Marshal(status)
		if second, _ := json.Marshal(again); !bytes.Equal(first, second) {
			t.Errorf("after %q, the same news an hour later show another status:\n%s\n%s", step.Does, first, second)
		}
		out.WriteString("# " + step.Does + "\n" + show(&status) + "\n")
		prev = &status
	}
	return out.Bytes()
}

// show is a status in the order a person reads it.
func show(s *v1.PodStatus) string {
	var b strings.Builder
	b.WriteString(strings.TrimSpace(fmt.Sprintf("%s %s %s", s.Phase, s.Reason, s.Message)) + "\n")
	for _, c := range append(append([]v1.ContainerStatus{}, s.InitContainerStatuses...), s.ContainerStatuses...) {
		text, _ := json.Marshal(c)
		b.WriteString("  " + string(text) + "\n")
	}
	for _, c := range s.Conditions {
		b.WriteString("  " + string(c.Type) + "=" + string(c.Status) + " since " + c.LastTransitionTime.UTC().Format("15:04:05"))
		if c.Reason != "" || c.Message != "" {
			b.WriteString(" " + c.Reason + ": " + c.Message)
		}
		b.WriteString("\n")
	}
	return b.String()
}
