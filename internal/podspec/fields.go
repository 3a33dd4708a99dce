package podspec

import (
	"fmt"
	"regexp"
	"strings"
)

// Honour says on which nodes a field has its effect.
type Honour string

// Where a field is honoured.
const (
	Everywhere Honour = "yes"
	AsRoot     Honour = "where legiond runs as root"
	Partly     Honour = "in part"
	Nowhere    Honour = "not yet"
	NoMeaning  Honour = "has no meaning"
)

// Field is one field of a pod, or a field and what is below it.
type Field struct {
	// Path leaves out the numbers: "spec.containers[].env[]".
	Path   string
	Honour Honour
	Note   string
}

// Fields is what runtime "host" makes of a pod. What Compile lists as not
// honoured is in it; docs/PODS.md is made of it.
var Fields = []Field{
	{"metadata.annotations[unit.legion.dev/CONTAINER]", Everywhere, "directives of `[Service]` that are laid over the container; `legion promote` writes them. A wrong one, one that has a field here (`User=`, `CapabilityBoundingSet=`, `TimeoutStopSec=` …) or one that is not honoured keeps the container waiting, with its line. With `ExecStart=` the container has no command. Directives may act as root, by `+`, `EnvironmentFile=`, `StateDirectory=` …: where runAsNonRoot is true they are refused as a whole. No effect on containers of an image"},
	{"spec.runtimeClassName", Everywhere, "`host`; `oci` and none are run from their image, see below; pods of another class wait, and say so"},
	{"spec.restartPolicy", Everywhere, "back-off as the kubelet's: at once, 10 s, doubling to 5 min, forgotten after 10 min"},
	{"spec.terminationGracePeriodSeconds", Everywhere, "at least a second"},
	{"spec.initContainers[]", Everywhere, "one after the other, also the restartable ones (sidecars), which end last; each field as of `spec.containers[]`. The pod waits as a whole for what any of its containers lacks"},
	{"spec.ephemeralContainers[]", Everywhere, "`kubectl debug POD`. Each field as of `spec.containers[]`; here a command is needed, as there is no image. Started once, also while init containers run; what one lacks holds back nothing but itself. Not ready, never restarted, ends with the pod"},
	{"spec.activeDeadlineSeconds", Everywhere, "while the agent runs"},
	{"spec.hostNetwork, hostPID, hostIPC", NoMeaning, "a process of the host has them"},
	{"spec.shareProcessNamespace", NoMeaning, "a process of the host shares the host's"},
	{"spec.hostUsers", Nowhere, "false: no user namespace is made, so root is that of the node"},
	{"spec.hostname", Nowhere, "a process of the host has the host's"},
	{"spec.subdomain", Nowhere, "as above"},
	{"spec.setHostnameAsFQDN", Nowhere, "as above"},
	{"spec.hostnameOverride", Nowhere, "as above"},
	{"spec.overhead", AsRoot, "added to the limits of the whole pod"},
	{"spec.schedulingGates", Everywhere, "a pod with one is bound to no node"},
	{"spec.dnsPolicy", AsRoot, "Default and ClusterFirst are the node's resolver, as for other pods of the host's network; ClusterFirstWithHostNet the cluster's DNS (`legion-agent --cluster-dns`, `--cluster-domain`), without one the node's, with an event; None. Without root the node's in any case"},
	{"spec.dnsConfig", AsRoot, "in /etc/resolv.conf, beside the node's"},
	{"spec.hostAliases", AsRoot, "in /etc/hosts, after the node's"},
	{"spec.resources.limits", Partly, "of the whole pod: as root cpu and memory, by cgroup; without it the sum of the containers' where each has one"},
	{"spec.resourceClaims", Nowhere, ""},
	{"spec.readinessGates", Everywhere, ""},
	{"spec.os", Everywhere, "a pod for another system waits, and says so"},

	{"spec.securityContext.runAsUser, runAsGroup, runAsNonRoot, supplementalGroups", Everywhere, "also of a container"},
	{"spec.securityContext.fsGroup", AsRoot, "of emptyDir and of the volumes that the agent writes"},
	{"spec.securityContext.seLinuxOptions", Nowhere, ""},
	{"spec.securityContext.seccompProfile", Everywhere, "Unconfined, RuntimeDefault, and Localhost: a file below `legion-agent --seccomp-profile-root` (by default `seccomp` in its --dir), without which the container waits with CreateContainerError. Not of a privileged container. RuntimeDefault of runtime `host` is what OCI runtimes refuse, by the container's capabilities. Profiles that ask another program (SCMP_ACT_NOTIFY) are refused"},
	{"spec.securityContext.appArmorProfile", Nowhere, ""},
	{"spec.securityContext.sysctls", Nowhere, "a process of the host has the host's"},

	{"spec.volumes[]", Partly, "emptyDir, hostPath, configMap, secret, downwardAPI, projected, image; others have no effect. All need root: without it only a hostPath that is mounted where it is"},
	{"spec.volumes[].hostPath.type", AsRoot, "every type, checked at each start; without one a directory is made where there is nothing"},
	{"spec.volumes[].image", AsRoot, "reference and pullPolicy, with the pod's imagePullSecrets: pulled when the pod begins, mounted read-only, and nothing of it can be executed; subPath. A tag that comes to mean another image counts for the next pod. What mounts one that is not to be had waits with ErrImagePull, ImagePullBackOff, ErrImageNeverPull or InvalidImageName"},
	{"spec.volumes[].emptyDir.medium", AsRoot, "Memory; huge pages not yet"},
	{"spec.volumes[].emptyDir.sizeLimit", AsRoot, "of medium Memory its size; on the disk it is looked every 10 s, and a pod that takes more is Evicted"},
	{"spec.volumes[].projected.sources[]", Partly, "configMap, secret, downwardAPI, serviceAccountToken (bound to the pod, renewed after four fifths of its life)"},

	{"spec.containers[].image, imagePullPolicy", NoMeaning, "the programs are the host's"},
	{"spec.containers[].command, args, workingDir", Everywhere, "`$(NAME)` is expanded; a command is needed"},
	{"spec.containers[].env[]", Everywhere, "value, fieldRef, resourceFieldRef, configMapKeyRef, secretKeyRef. Also KUBERNETES_SERVICE_HOST and _PORT, which lead to the API"},
	{"spec.containers[].env[].valueFrom.fileKeyRef", AsRoot, "read at each start of the container, which need not mount the volume; hooks, probes and `kubectl exec` see what the start has seen. Without the file or the key the container does not start and says why, with RunContainerError or CrashLoopBackOff, unless it is optional. Not in subPathExpr"},
	{"spec.containers[].envFrom[]", Everywhere, "a container that waits for an object starts as soon as it is there; a changed one counts from the next start"},
	{"spec.containers[].resources.requests", Everywhere, "for placement and, as root, oom_score_adj and the weight of the pod and the container for the processor; a pod without requests has the least"},
	{"spec.containers[].resources.limits", Partly, "as root: cpu and memory (without swap), by cgroup of version 2 or 1; the end for want of memory is `OOMKilled`. ephemeral-storage is of logs and, of a container of an image, what it writes outside of volumes, of all containers also emptyDirs: looked at every 10 s, and a pod that takes more is Evicted. Others have no effect. What the machine's cgroups cannot keep is in the condition, too"},
	{"spec.containers[].resources.claims", Nowhere, ""},
	{"spec.containers[].resizePolicy", AsRoot, "`kubectl patch POD --subresource resize`: the limits of what runs are set anew, or the container is restarted. PodResizePending is Infeasible or Deferred where the node has no room, looked at every 10 s; PodResizeInProgress says with reason Error what this machine's cgroups cannot do, and a memory limit below what is in use. spec.resources changes without these conditions"},
	{"spec.containers[].restartPolicy", Everywhere, "before the pod's"},
	{"spec.containers[].restartPolicyRules", Everywhere, "the first that fits, with the actions Restart and RestartAllContainers. Both come after the back-off of the container that has ended; then the latter kills all others, init containers included, keeps the volumes, and begins again with the first. The condition AllContainersRestarting tells until the last are started. Ephemeral containers stay"},
	{"spec.containers[].volumeDevices", Nowhere, ""},
	{"spec.containers[].volumeMounts[]", AsRoot, "subPath, subPathExpr, recursiveReadOnly, mountPropagation; each container has a mount namespace of its own"},
	{"spec.containers[].volumeMounts[].readOnly", AsRoot, ""},
	{"spec.containers[].lifecycle.postStart", Everywhere, "exec, httpGet, sleep"},
	{"spec.containers[].lifecycle.preStop", Everywhere, "exec, httpGet, sleep"},
	{"spec.containers[].lifecycle.stopSignal", Partly, "Linux's signals; the server drops it (upstream's ContainerStopSignals is off)"},
	{"spec.containers[].livenessProbe, readinessProbe, startupProbe", Everywhere, "exec, httpGet, tcpSocket, grpc; terminationGracePeriodSeconds"},
	{"spec.containers[].terminationMessagePath", AsRoot, "up to 4096 bytes, empty at each start"},
	{"spec.containers[].terminationMessagePolicy", Everywhere, "File, FallbackToLogsOnError"},
	{"spec.containers[].stdin, stdinOnce", Everywhere, "`kubectl attach -i` writes to it; without stdinOnce the container never sees its end, with it when the first who was attached leaves. A terminal stays open in any case"},
	{"spec.containers[].tty", Everywhere, "the container's own, TERM=xterm; its output is in the log, too. Both outlive an agent and a legiond that are killed"},
	{"spec.containers[].securityContext.capabilities", AsRoot, "as the bounding set; without a word all are kept"},
	{"spec.containers[].securityContext.privileged", NoMeaning, "all capabilities are kept"},
	{"spec.containers[].securityContext.allowPrivilegeEscalation", Everywhere, ""},
	{"spec.containers[].securityContext.readOnlyRootFilesystem", AsRoot, "all but the mounts, /proc and /dev"},
	{"spec.containers[].securityContext.seLinuxOptions", Nowhere, ""},
	{"spec.containers[].securityContext.seccompProfile", Everywhere, "as the pod's, before it"},
	{"spec.containers[].securityContext.procMount", NoMeaning, "/proc is the host's, nothing of it is masked"},
	{"spec.containers[].securityContext.appArmorProfile", Nowhere, ""},
}

var fieldNumber = regexp.MustCompile(`\[\d+\]`)

// FieldOf finds the row of a path that Compile lists, nil if there is none.
func FieldOf(path string) *Field {
	path = fieldNumber.ReplaceAllString(path, "[]")
	path = strings.NewReplacer("readinessProbe", "livenessProbe", "startupProbe", "livenessProbe", "spec.initContainers[].", "spec.containers[].", "spec.ephemeralContainers[].", "spec.containers[].").Replace(path)
	for i := range Fields {
		first, _, _ := strings.Cut(Fields[i].Path, ",")
		if first == path {
			return &Fields[i]
		}
	}
	return nil
}

// FieldTable is Fields as a page for people.
func FieldTable() string {
	var b strings.Builder
	b.WriteString("# Pods of runtime `host`\n\n" +
		"What a node makes of each field of a pod. A pod that sets a field without effect has the condition `legion.dev/NotHonoured`, which names it, and an event. " +
		"This page is made from `internal/podspec/fields.go` by its test (`go test ./internal/podspec -rewrite`).\n\n" +
		"| field | honoured | |\n| --- | --- | --- |\n")
	for _, f := range Fields {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Path, f.Honour, f.Note)
	}
	b.WriteString("\n# Pods of images\n\n" +
		"A pod of class `oci`, or of none, runs the image of each container by the node's OCI runtime (`runc`, else `crun`; `legion-agent --oci-runtime`), where `legiond` runs as root. " +
		"A node without one says so by the handlers in its status, a DaemonSet by the condition `Degraded` with reason `NoRuntime`. The table above holds but for these:\n\n" +
		"| field | honoured | |\n| --- | --- | --- |\n")
	for _, f := range OCIFields {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Path, f.Honour, f.Note)
	}
	return b.String()
}

// OCIFields is what is otherwise for pods of images.
var OCIFields = []Field{
	{"spec.hostNetwork", Partly, "pods use the node's network in any case: there is no other on offer. With true the container also has the node's host name"},
	{"spec.hostPID, hostIPC", Everywhere, "else each container has its own"},
	{"spec.hostUsers", Everywhere, "false: the containers are in a user namespace of 65536 users that the pod has for itself, of the host's numbers from 1879048192 on. What is root's in the image and in volumes is the container's root's, what that makes is root's on the disk; the container does not start where a volume's file system cannot do that, as overlayfs and some network file systems. Files of image volumes are nobody's. Needs Linux 5.19, and a node that stacks images by overlayfs. Tried with runc 1.1"},
	{"spec.shareProcessNamespace", Everywhere, "process 1 is one that only holds the namespace, and outlives the containers. What a container leaves running ends with it"},
	{"spec.hostname, hostnameOverride, subdomain, setHostnameAsFQDN", Everywhere, "without them, the pod's name. They are in /etc/hosts, too, with the node's address; the domain is `legion-agent --cluster-domain`. Not with hostNetwork"},
	{"spec.dnsPolicy, hostAliases", Everywhere, "/etc/resolv.conf and /etc/hosts are seen, read-only; ClusterFirst is the cluster's DNS, where the node knows of one"},
	{"spec.securityContext.sysctls", Partly, "kernel.shm_rmid_forced, without hostIPC; not those of the network, which is the node's, nor those that the kubelet calls unsafe"},
	{"spec.ephemeralContainers[].targetContainerName", Everywhere, "the ephemeral container is in the PID namespace of the other, which must run"},
	{"spec.imagePullSecrets[]", Everywhere, "its own or else the service account's; of both types; a key may be a host, with a pattern or a path; each login that fits is tried, at each try as the Secret is then. One that does not exist is told by the event FailedToRetrieveImagePullSecret, and the pull is tried without. The pod that has none says ErrImagePull with the registry's reason"},
	{"spec.containers[].image", Everywhere, "a name with a tag or a digest; of an index, the image of the node's platform. A changed one counts for the next pod"},
	{"spec.containers[].imagePullPolicy", Everywhere, "when the pod begins; a restart of a container runs the image that is there. ErrImagePull, ImagePullBackOff (10 s, doubling to 5 min), ErrImageNeverPull, InvalidImageName"},
	{"spec.containers[].command, args, workingDir, env[]", Everywhere, "over the image's ENTRYPOINT, CMD, WORKDIR and ENV as Kubernetes has it"},
	{"spec.containers[].securityContext.runAsUser, runAsGroup, runAsNonRoot", Everywhere, "over the image's USER; names are looked up in the image's own files, and its groups for the user are added"},
	{"spec.containers[].securityContext.capabilities", Everywhere, "added to and dropped from the usual ones of containers"},
	{"spec.containers[].securityContext.privileged", Everywhere, "all capabilities that legiond has, and devices; nothing of /proc and /sys is hidden"},
	{"spec.containers[].securityContext.procMount", Everywhere, ""},
	{"spec.containers[].securityContext.seccompProfile", Everywhere, "RuntimeDefault is docker's default profile"},
	{"spec.containers[].volumeMounts[]", Everywhere, "as above; each run has a new writable layer over the image"},
	{"spec.containers[].lifecycle.stopSignal", Partly, "as above, before the image's STOPSIGNAL"},
}
