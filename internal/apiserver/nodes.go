package apiserver

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"

	"legion.dev/legion/internal/tunnel"
)

// tunnelConnections reaches each node through the tunnel its agent holds open;
// the registries of pods and nodes take it in place of a kubelet's address.
type tunnelConnections struct{ sessions *tunnel.Sessions }

func (c tunnelConnections) GetConnectionInfo(_ context.Context, node types.NodeName) (*kubeletclient.ConnectionInfo, error) {
	if !c.sessions.Connected(string(node)) {
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
