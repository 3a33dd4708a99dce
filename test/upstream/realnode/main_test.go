// Package realnode holds a test: Legion's agent as the only node of a cluster
// whose control plane is upstream's, as docs/CLUSTER.md tells it.
package realnode

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	"legion.dev/legion/internal/app/agentd"
	"legion.dev/legion/internal/app/hostd"
	"legion.dev/legion/internal/app/serverd"
	"legion.dev/legion/test/upstream/kube"
)

// asProgram says which program this binary is to be, if it is not the test.
const asProgram = "UPSTREAM_TEST_PROGRAM"

func TestMain(m *testing.M) {
	args := os.Args[1:]
	switch program := os.Getenv(asProgram); program {
	case "":
		os.Exit(m.Run())
	case "kube-apiserver":
		end(apiserver(args))
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

// apiserver runs etcd and kube-apiserver in the directory of its first argument
// until it is asked to end. The administrator's kubeconfig is there when both are
// ready.
func apiserver(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server, err := kube.Start(context.Background(), args[0], args[1:]...)
	if err != nil {
		return err
	}
	defer server.Stop()
	path := filepath.Join(args[0], "kubeconfig")
	if err := writeKubeconfig(path+".new", server.Config, server.Config.BearerToken); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// writeKubeconfig writes one for a bearer of a token.
func writeKubeconfig(path string, server *rest.Config, token string) error {
	config := api.NewConfig()
	config.Clusters["c"] = &api.Cluster{Server: server.Host, CertificateAuthority: server.CAFile}
	config.AuthInfos["u"] = &api.AuthInfo{Token: token}
	config.Contexts["c"] = &api.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "c"
	return clientcmd.WriteToFile(*config, path)
}

func end(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
