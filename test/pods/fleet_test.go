package pods

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	imagev1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/test/standin/standinimage"
)

// patience bounds every wait.
const patience = 2 * time.Minute

// node is the fleet's node.
const node = "n1"

// fleet is a server and a node, which all tests share.
type fleet struct {
	dir  string
	api  *kubernetes.Clientset
	host *hostclient.Client
	// standin is the program that pods of the host run, daemon that of the
	// images that manifests name.
	standin, daemon string
	registry        *source
	// pods are the UIDs of all pods that scripts have seen.
	pods sync.Map
}

var shared *fleet

// up starts the fleet.
func up(dir string) (*fleet, error) {
	f := &fleet{dir: dir, standin: filepath.Join(dir, "standin"), daemon: filepath.Join(dir, "daemon")}
	err := errors.Join(standinimage.Build(f.standin, "test/standin"), standinimage.Build(f.daemon, "test/pods/daemon"))
	if err != nil {
		return nil, err
	}
	if f.registry, err = newSource(); err != nil {
		return nil, err
	}
	if out, err := f.program("", "legion", "up", "--dir", f.home(), "--nodes", "1", "--port", "0"); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(f.home(), "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	if f.api, err = kubernetes.NewForConfig(config); err != nil {
		return nil, err
	}
	f.host = hostclient.New(filepath.Join(f.home(), "nodes", node, "host.sock"))
	return f, errors.Join(
		f.registry.open(),
		f.registry.push(privateImage, []string{"/standin"}, f.standin, imagev1.Config{Entrypoint: []string{"/standin"}, Env: []string{"PRIVATE=yes"}}),
		f.image("standin:v1", []string{"/standin"}, f.standin, imagev1.Config{Entrypoint: []string{"/standin"}}),
		f.image("standin:user", []string{"/standin"}, f.standin, imagev1.Config{
			Entrypoint: []string{"/standin"}, Cmd: []string{"tell", "then", "stay"}, Env: []string{"COLOUR=red", "SHAPE=round"},
			User: "app", WorkingDir: "/srv", StopSignal: "SIGQUIT",
		}),
		f.image("standin:talk", []string{"/standin"}, f.standin, imagev1.Config{Cmd: []string{"/standin", "talk"}}),
		f.image("standin:number", []string{"/standin"}, f.standin, imagev1.Config{Entrypoint: []string{"/standin"}, User: "1000"}))
}

func down(dir string) error {
	f := fleet{dir: dir}
	out, err := f.program("", "legion", "down", "--dir", f.home())
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	if shared == nil {
		return nil
	}
	var left []string
	shared.pods.Range(func(uid, _ any) bool {
		for _, parent := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*", "/run/legion/oci"} {
			found, _ := filepath.Glob(fmt.Sprintf("%s/pod-%s*", parent, uid))
			left = append(left, found...)
		}
		return true
	})
	if len(left) > 0 {
		return fmt.Errorf("left of containers: %q", left)
	}
	return nil
}

// home is the fleet's directory; the other files of dir are the test's.
func (f *fleet) home() string { return filepath.Join(f.dir, "fleet") }

// program runs one of the programs that make has built.
func (f *fleet) program(stdin, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !filepath.IsAbs(program) {
		program = f.binary(program)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = f.environ()
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return out.String(), nil
}

// image imports an image of a program into the node's store.
func (f *fleet) image(as string, at []string, program string, config imagev1.Config) error {
	img, err := standinimage.New(program, at, config)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(as)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(f.dir, "image-")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if err := errors.Join(tarball.Write(tag, img, file), file.Close()); err != nil {
		return err
	}
	store := filepath.Join(f.home(), "nodes", node, "images")
	if out, err := f.program("", "legion", "image", "import", "--dir", store, "--name", as, file.Name()); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}
