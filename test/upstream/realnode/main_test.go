// Package realnode holds a test: Legion's agent as the only node of a cluster
// whose control plane is upstream's, as docs/CLUSTER.md tells it.
package realnode

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/klog/v2"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	"legion.dev/legion/internal/app/agentd"
	"legion.dev/legion/internal/app/hostd"
	"legion.dev/legion/internal/app/serverd"
)

// asProgram says which program this binary is to be, if it is not the test.
const asProgram = "UPSTREAM_TEST_PROGRAM"

func TestMain(m *testing.M) {
	args := os.Args[1:]
	switch program := os.Getenv(asProgram); program {
	case "":
		klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // kube-apiserver runs in this process
		os.Exit(m.Run())
	case "legiond":
		o := hostd.Options{Dir: args[0], Units: []string{filepath.Join(args[0], "units")}}
		end(hostd.Run(context.Background(), o, slog.New(slog.NewTextHandler(os.Stderr, nil))))
	case "legion-agent":
		os.Exit(agentd.Main(args, os.Stderr))
	case "kubectl":
		os.Exit(serverd.Main(append([]string{"kubectl"}, args...)))
	case "kube-controller-manager":
		command := controllers.NewControllerManagerCommand()
		command.SetArgs(args)
		end(command.Execute())
	case "kube-scheduler":
		command := scheduler.NewSchedulerCommand()
		command.SetArgs(args)
		end(command.Execute())
	default:
		end(fmt.Errorf("there is no program %q here", program))
	}
}

func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
