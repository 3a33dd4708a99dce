package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/registry/rest"
	api "k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	noderest "k8s.io/kubernetes/pkg/registry/core/node/rest"

	"legion.dev/legion/internal/tunnel"
)

// tunnelConnections reaches each node through the tunnel its agent holds open;
// the registries of pods and nodes take it in place of a kubelet's address.
type tunnelConnections struct{ sessions *tunnel.Sessions }

func (c tunnelConnections) GetConnectionInfo(ctx context.Context, node types.NodeName) (*kubeletclient.ConnectionInfo, error) {
	if !c.sessions.Reaches(ctx, string(node)) {
		return nil, apierrors.NewServiceUnavailable((&tunnel.NotConnectedError{Node: string(node)}).Error())
	}
	transport := c.sessions.Transport(string(node))
	return &kubeletclient.ConnectionInfo{
		// The tunnel is TLS already; name and port only fill the URL.
		Scheme:                         "http",
		Hostname:                       string(node),
		Port:                           "10250",
		Transport:                      transport,
		InsecureSkipTLSVerifyTransport: transport,
	}, nil
}

// nodeProxy is the subresource proxy of nodes. Upstream's looks the node's name
// up, to keep loopback addresses away; a tunnel dials no address.
type nodeProxy struct {
	*noderest.ProxyREST
	connections tunnelConnections
}

// Connect hands a request on to the node's agent.
func (p nodeProxy) Connect(ctx context.Context, id string, options runtime.Object, responder rest.Responder) (http.Handler, error) {
	asked, ok := options.(*api.NodeProxyOptions)
	if !ok {
		return nil, fmt.Errorf("the options of a node's proxy are a %T", options)
	}
	if strings.Contains(id, ":") {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("%q names a port: only the node's agent is reached through its tunnel, leave the port out", id))
	}
	info, err := p.connections.GetConnectionInfo(ctx, types.NodeName(id))
	if err != nil {
		return nil, err
	}
	to := &url.URL{Scheme: info.Scheme, Host: net.JoinHostPort(info.Hostname, info.Port), Path: "/" + strings.TrimPrefix(asked.Path, "/")}
	return proxy.NewUpgradeAwareHandler(to, info.Transport, true, false, proxy.NewErrorResponder(responder)), nil
}
