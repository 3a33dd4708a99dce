package serverd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"

	"legion.dev/legion/internal/podspec"
	"legion.dev/legion/internal/prefetch"
)

func imageCommand() *cobra.Command {
	parent := &cobra.Command{
		Use: "image", Short: "Have the nodes get images ahead of a rollout", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	parent.AddCommand(prefetchCommand())
	return parent
}

func prefetchCommand() *cobra.Command {
	var in fleetFlags
	p := prefetching{result: prefetched{Nodes: []prefetchedNode{}}}
	var file, selector, output string
	var secrets []string
	c := &cobra.Command{
		Use:   "prefetch IMAGE… | prefetch ds/NAME… | prefetch -f FILE",
		Short: "Have nodes get images before anything is run from them",
		Long: "Have nodes get images before anything is run from them: those named, on each node that runs images,\n" +
			"or those of DaemonSets, there or in a file to be applied, on the nodes that each wants, with its\n" +
			"imagePullSecrets. Nothing is changed and nothing is started. What a node has already is not asked for\n" +
			"again, unless the policy is Always, as it is for IMAGE without a tag or with latest.\n" +
			"Exit status: 0 all nodes have all, 1 one has not.",
		Example: "  legion image prefetch -f exporter.yaml && legion kubectl apply -f exporter.yaml\n" +
			"  legion image prefetch registry.example/app:v2 -l zone=a",
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("-o %s: only json is known, and nothing for text", output)
			}
			only, err := labels.Parse(selector)
			if err != nil {
				return fmt.Errorf("-l %s: %w", selector, err)
			}
			if (file == "") == (len(args) == 0) {
				return errors.New("name either images, or DaemonSets as ds/NAME, or a file with -f FILE")
			}
			if p.client, err = in.connect(); err != nil {
				return fmt.Errorf("cannot have images fetched: %w", err)
			}
			p.only, p.namespace = only, in.namespace
			if err := p.find(cmd.Context(), args, file, secrets, cmd.InOrStdin()); err != nil {
				return err
			}
			p.view = newPrefetchView(cmd.OutOrStdout(), cmd.ErrOrStderr(), output == "json", len(p.wanted))
			return p.run(cmd.Context())
		},
	}
	in.add(c)
	flags := c.Flags()
	flags.StringVarP(&file, "filename", "f", "", "the images of the DaemonSets of this `file`, as if it were applied; - is the standard input")
	flags.StringVarP(&selector, "selector", "l", "", "only on nodes with these `labels`")
	flags.StringSliceVar(&secrets, "pull-secret", nil, "`names` of Secrets with logins for IMAGE")
	flags.BoolVar(&p.wait, "wait", true, "wait for the end; false has the nodes go on by themselves")
	flags.IntVar(&p.atOnce, "at-once", 64, "how many nodes do so at a time")
	flags.StringVarP(&output, "output", "o", "", "json for programs")
	return c
}

// prefetching has images fetched by the nodes of a fleet.
type prefetching struct {
	client    kubernetes.Interface
	namespace string
	only      labels.Selector
	wait      bool
	atOnce    int
	// wanted are the images by node, and by name.
	wanted map[string]map[string]prefetch.Image
	view   *prefetchView
	result prefetched
}

// find says which nodes are to have which images.
func (p *prefetching) find(ctx context.Context, args []string, file string, secrets []string, stdin io.Reader) error {
	ctx, cancel := context.WithTimeout(ctx, planTime)
	defer cancel()
	p.wanted = map[string]map[string]prefetch.Image{}
	var sets []*appsv1.DaemonSet
	var images []string
	if file != "" {
		found, err := fromFile(ctx, p.client, file, p.namespace, stdin)
		if err != nil {
			return err
		}
		sets = found
	}
	for _, arg := range args {
		// An image whose name begins so is named with its registry's host.
		if _, err := daemonSetName(arg); err != nil || !strings.Contains(arg, "/") {
			images = append(images, arg)
			continue
		}
		found, err := fromServer(ctx, p.client, arg, p.namespace)
		if err != nil {
			return err
		}
		sets = append(sets, found...)
	}
	if err := p.ofSets(ctx, sets); err != nil {
		return err
	}
	if err := p.ofNames(ctx, images, secrets); err != nil {
		return err
	}
	if len(p.wanted) == 0 {
		return errors.New("no node is to have these images: none is wanted that runs images and has the labels")
	}
	return nil
}

// ofSets adds the images of DaemonSets for the nodes that they want.
func (p *prefetching) ofSets(ctx context.Context, sets []*appsv1.DaemonSet) error {
	nodes := map[string]bool{}
	if len(sets) > 0 {
		list, err := p.nodes(ctx)
		if err != nil {
			return err
		}
		for i := range list {
			nodes[list[i].Name] = true
		}
	}
	for _, ds := range sets {
		spec := &ds.Spec.Template.Spec
		if !podspec.OCI(&corev1.Pod{Spec: *spec}) {
			return fmt.Errorf("ds/%s in namespace %s runs processes of the host (runtimeClassName %s), no images", ds.Name, ds.Namespace, *spec.RuntimeClassName)
		}
		logins, err := p.logins(ctx, ds.Namespace, p.secretsOf(ctx, ds.Namespace, spec))
		if err != nil {
			return err
		}
		state, err := gather(ctx, p.client, ds)
		if err != nil {
			return fmt.Errorf("cannot find the nodes of ds/%s in namespace %s: %w", ds.Name, ds.Namespace, err)
		}
		for _, n := range state.nodes {
			if !n.Run || !nodes[n.Name] {
				continue
			}
			for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
				p.want(n.Name, prefetch.Image{Name: c.Image, Always: c.ImagePullPolicy == corev1.PullAlways, Logins: logins})
			}
		}
	}
	return nil
}

// ofNames adds images for each node that runs images.
func (p *prefetching) ofNames(ctx context.Context, images, secrets []string) error {
	if len(images) == 0 {
		return nil
	}
	logins, err := p.logins(ctx, p.namespace, secrets)
	if err != nil {
		return err
	}
	nodes, err := p.nodes(ctx)
	if err != nil {
		return err
	}
	for i := range nodes {
		runs := slices.ContainsFunc(nodes[i].Status.RuntimeHandlers, func(h corev1.NodeRuntimeHandler) bool { return h.Name == podspec.OCIRuntime })
		for _, name := range images {
			if runs {
				p.want(nodes[i].Name, prefetch.Image{Name: name, Always: newest(name), Logins: logins})
			}
		}
	}
	return nil
}

// newest says whether an image's name is of whichever is the newest, so that
// Kubernetes asks for it each time.
func newest(name string) bool {
	name, _, digest := strings.Cut(name, "@")
	_, tag, tagged := strings.Cut(name[strings.LastIndex(name, "/")+1:], ":")
	return !digest && (!tagged || tag == "latest")
}

func (p *prefetching) want(node string, image prefetch.Image) {
	images := p.wanted[node]
	if images == nil {
		images = map[string]prefetch.Image{}
		p.wanted[node] = images
	}
	if before, ok := images[image.Name]; ok {
		image.Always = image.Always || before.Always
		image.Logins = append(slices.Clip(before.Logins), image.Logins...)
	}
	images[image.Name] = image
}

func (p *prefetching) nodes(ctx context.Context) ([]corev1.Node, error) {
	list, err := p.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: p.only.String()})
	if err != nil {
		return nil, fmt.Errorf("cannot read the nodes: %w", err)
	}
	return list.Items, nil
}

// secretsOf are the names of a pod's imagePullSecrets: those of its service
// account where it has none of its own.
func (p *prefetching) secretsOf(ctx context.Context, namespace string, spec *corev1.PodSpec) []string {
	refs := spec.ImagePullSecrets
	if len(refs) == 0 {
		account, err := p.client.CoreV1().ServiceAccounts(namespace).Get(ctx, cmp.Or(spec.ServiceAccountName, "default"), metav1.GetOptions{})
		if err == nil {
			refs = account.ImagePullSecrets
		}
	}
	var names []string
	for _, r := range refs {
		names = append(names, r.Name)
	}
	return names
}

// logins are the docker configs of Secrets. One that is not there is none, as
// for a pod.
func (p *prefetching) logins(ctx context.Context, namespace string, secrets []string) ([][]byte, error) {
	var out [][]byte
	for _, name := range secrets {
		secret, err := p.client.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the login in secret %s of namespace %s: %w", name, namespace, err)
		}
		for _, key := range []string{corev1.DockerConfigJsonKey, corev1.DockerConfigKey} {
			if len(secret.Data[key]) > 0 {
				out = append(out, secret.Data[key])
			}
		}
	}
	return out, nil
}

// run asks all nodes, some at a time.
func (p *prefetching) run(ctx context.Context) error {
	names := slices.Sorted(maps.Keys(p.wanted))
	ended := make(chan prefetchedNode)
	slots := make(chan struct{}, max(p.atOnce, 1))
	var asking sync.WaitGroup
	go func() {
		for _, name := range names {
			slots <- struct{}{}
			asking.Go(func() {
				p.view.begins(name)
				ended <- p.ask(ctx, name)
				<-slots
			})
		}
		asking.Wait()
		close(ended)
	}()
	for node := range ended {
		p.result.add(node)
		p.view.ends(node)
	}
	slices.SortFunc(p.result.Nodes, func(a, b prefetchedNode) int { return strings.Compare(a.Node, b.Node) })
	if err := p.view.over(p.result, p.wait); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if p.result.Failed > 0 {
		return exitStatus(1)
	}
	return nil
}

// ask has a node fetch its images, and waits for them unless told not to.
func (p *prefetching) ask(ctx context.Context, name string) prefetchedNode {
	began := time.Now()
	node := prefetchedNode{Node: name}
	request := prefetch.Request{Background: !p.wait}
	for _, image := range slices.Sorted(maps.Keys(p.wanted[name])) {
		request.Images = append(request.Images, p.wanted[name][image])
	}
	err := p.send(ctx, name, request, func(r prefetch.Result) { node.Images = append(node.Images, r) })
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err):
		node.Error = "its agent is older than this command, and does not know how"
	case err != nil:
		node.Error = said(err)
	case p.wait && len(node.Images) < len(request.Images):
		node.Error = fmt.Sprintf("it answered for %d of %d images only: its agent ended meanwhile, or the connection", len(node.Images), len(request.Images))
	}
	node.Seconds = time.Since(began).Round(time.Millisecond).Seconds()
	return node
}

// said is what a node's agent has answered with, where it is not the server that
// has refused: client-go has a sentence of its own for each status.
func said(err error) string {
	var status *apierrors.StatusError
	if errors.As(err, &status) && status.ErrStatus.Details != nil {
		for _, c := range status.ErrStatus.Details.Causes {
			if c.Type == metav1.CauseTypeUnexpectedServerResponse && c.Message != "" {
				return c.Message
			}
		}
	}
	return err.Error()
}

func (p *prefetching) send(ctx context.Context, node string, request prefetch.Request, each func(prefetch.Result)) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	stream, err := p.client.CoreV1().RESTClient().Post().Resource("nodes").Name(node).SubResource("proxy").Suffix(prefetch.Path).
		SetHeader("Content-Type", "application/json").Body(body).Stream(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = stream.Close() }()
	for lines := json.NewDecoder(stream); ; {
		var r prefetch.Result
		if err := lines.Decode(&r); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		each(r)
	}
}
