// Daemon stands for the programs of the DaemonSets that projects publish: under
// the name of each it takes the arguments that the manifest gives, looks for
// what the real one needs of its node and its pod, and answers where the
// manifest's probes ask. What is missing ends it, with the reason.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// call is how a program was called: its words, and --name=value of them.
type call struct {
	args  []string
	flags map[string]string
}

func main() {
	c := call{args: os.Args[1:], flags: map[string]string{}}
	for i, arg := range c.args {
		name, value, ok := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !ok && i+1 < len(c.args) {
			value = c.args[i+1]
		}
		c.flags[name] = value
	}
	name := filepath.Base(os.Args[0])
	program := programs[name]
	if program == nil {
		fmt.Println("nobody here is called", name)
		os.Exit(2)
	}
	again, err := program(c)
	if err != nil {
		fmt.Println(name+":", err)
		os.Exit(1)
	}
	if !again {
		return
	}
	fmt.Println(name, "runs")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
}

// programs do what is to be done before they stay, and say whether they stay.
var programs = map[string]func(c call) (stays bool, err error){
	"aws-ebs-csi-driver": func(c call) (bool, error) {
		if c.args[0] == "pre-stop-hook" {
			return false, nil
		}
		dir := c.flags["csi-mount-point-prefix"]
		return true, errors.Join(env("CSI_NODE_NAME"), there("/dev/null", "/var/lib/kubelet"), os.MkdirAll(dir, 0o755), socket(c.flags["endpoint"]))
	},
	"csi-node-driver-registrar": func(c call) (bool, error) {
		err := errors.Join(env(), answers(c.flags["csi-address"]), socket("/registration/"+strings.ReplaceAll(c.flags["kubelet-registration-path"], "/", "_")))
		if at := c.flags["http-endpoint"]; err == nil && at != "" {
			err = serve(at, nil)
		}
		return true, err
	},
	"livenessprobe": func(c call) (bool, error) {
		at := c.flags["http-endpoint"]
		if at == "" {
			at = ":9808"
		}
		return true, serve(at, func() error { return connect(c.flags["csi-address"]) })
	},
	"secrets-store-csi": func(c call) (bool, error) {
		return true, errors.Join(there(c.flags["provider-volume"], c.flags["additional-provider-volume-paths"], "/var/lib/kubelet/pods"),
			word("a node's name", c.flags["nodeid"]), socket(c.flags["endpoint"]), serve(c.flags["metrics-addr"], nil))
	},
	"cadvisor": func(call) (bool, error) {
		return true, errors.Join(there("/rootfs/etc", "/var/run", "/sys/class", "/var/lib/docker", "/dev/disk"), readOnly("/rootfs", "/sys"), serve(":8080", nil))
	},
	"cp":           func(c call) (bool, error) { return false, copyFile(c.args[1], c.args[2]) },
	"install-conf": func(c call) (bool, error) { return false, copyFile(c.args[0], c.args[1]) },
	"flanneld": func(c call) (bool, error) {
		return true, errors.Join(env("POD_NAME", "POD_NAMESPACE"), there("/etc/kube-flannel/net-conf.json", "/run/xtables.lock"),
			os.WriteFile("/run/flannel/subnet.env", nil, 0o644), has("CAP_NET_ADMIN", 12), ask("/api/v1/nodes"), serve(":"+c.flags["healthz-port"], nil))
	},
	"fluentd": func(call) (bool, error) {
		return true, errors.Join(env("K8S_NODE_NAME", "FLUENT_ELASTICSEARCH_HOST"), there("/var/log/pods"), readOnly("/var/log/pods"), ask("/api/v1/pods"))
	},
	"kured": func(c call) (bool, error) {
		err := errors.Join(env("KURED_NODE_ID"), there(filepath.Dir(c.flags["reboot-sentinel"])), readOnly("/sentinel", "/etc"), serve(":8080", nil))
		if os.Getpid() == 1 {
			err = errors.Join(err, errors.New("it does not see the host's processes"))
		}
		if has("CAP_SYS_RESOURCE", 24) == nil {
			// By the first process's namespace it reaches the host; where the
			// machine keeps a capability from legiond, the kernel refuses that.
			err = errors.Join(err, there("/proc/1/ns/mnt"))
		}
		return true, err
	},
	"speaker": func(c call) (bool, error) {
		return true, errors.Join(env("METALLB_NODE_NAME", "METALLB_HOST", "METALLB_ML_BIND_ADDR", "METALLB_POD_NAME"), there(os.Getenv("METALLB_ML_SECRET_KEY_PATH")+"/secretkey", "/etc/metallb/excludel2.yaml"),
			has("CAP_NET_RAW", 13), readOnly("/etc"), serve(":"+c.flags["port"], nil), serve("127.0.0.1:17472", nil))
	},
	"nfd-worker": func(call) (bool, error) {
		return true, errors.Join(is("GOMEMLIMIT", "536870912"), serve(":8080", nil))
	},
	"node_exporter": func(c call) (bool, error) {
		return true, errors.Join(there(c.flags["path.sysfs"]+"/class", c.flags["path.rootfs"]+"/etc", c.flags["path.procfs"]), user(65534), readOnly("/tmp"), serve(c.flags["web.listen-address"], nil))
	},
	"kube-rbac-proxy": func(c call) (bool, error) {
		return true, errors.Join(user(65532), serve(c.flags["secure-listen-address"], nil))
	},
	"node-problem-detector": func(c call) (bool, error) {
		return true, errors.Join(env("NODE_NAME"), there(strings.Split(c.flags["config.system-log-monitor"], ",")...), there("/var/log", "/dev/kmsg", "/etc/localtime"), readOnly("/config", "/var/log"))
	},
	"nvidia-device-plugin": func(call) (bool, error) {
		return true, socket("/var/lib/kubelet/device-plugins/nvidia-gpu.sock")
	},
	"otelcol-k8s": func(c call) (bool, error) {
		return true, errors.Join(env("MY_POD_IP", "OTEL_K8S_NODE_NAME", "OTEL_K8S_NODE_IP", "OTEL_K8S_NAMESPACE", "OTEL_K8S_POD_NAME"), there(c.flags["config"]), serve(":13133", nil))
	},
	"vector": func(c call) (bool, error) {
		return true, errors.Join(is("VECTOR_LOG", "info"), there(c.flags["config-dir"]+"/vector.yaml", "/var/log", "/var/lib", os.Getenv("PROCFS_ROOT")+"/1", os.Getenv("SYSFS_ROOT")+"/class"),
			os.WriteFile("/vector-data-dir/checkpoint", nil, 0o644), readOnly("/var/lib", "/etc/vector"), serve(":8686", nil))
	},
}

// env sees that variables are set, and those by which the API is found.
func env(names ...string) error {
	for _, name := range append(names, "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT") {
		if os.Getenv(name) == "" {
			return fmt.Errorf("%s is not set", name)
		}
	}
	return nil
}

func is(name, want string) error {
	if got := os.Getenv(name); got != want {
		return fmt.Errorf("%s is %q, not %q", name, got, want)
	}
	return nil
}

func word(what, text string) error {
	if text == "" || strings.Contains(text, "$(") {
		return fmt.Errorf("%s is %q", what, text)
	}
	return nil
}

func there(paths ...string) error {
	for _, path := range paths {
		if _, err := os.Stat(path); err != nil {
			return err
		}
	}
	return nil
}

// readOnly sees that nothing can be written.
func readOnly(dirs ...string) error {
	for _, dir := range dirs {
		f, err := os.CreateTemp(dir, "daemon-")
		if err == nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			return fmt.Errorf("%s can be written to", dir)
		}
		if !errors.Is(err, syscall.EROFS) && !errors.Is(err, syscall.EACCES) {
			return err
		}
	}
	return nil
}

func user(want int) error {
	if got := os.Getuid(); got != want {
		return fmt.Errorf("the user is %d, not %d", got, want)
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// socket listens on a path, which may be of the form unix:/path.
func socket(path string) error {
	path = filepath.Clean(strings.TrimPrefix(path, "unix:"))
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	return nil
}

// serve answers all requests, by what healthy says.
func serve(address string, healthy func() error) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		fmt.Println(http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if healthy == nil {
				return
			}
			if err := healthy(); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})))
		os.Exit(1)
	}()
	return nil
}
