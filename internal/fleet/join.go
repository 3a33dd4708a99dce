package fleet

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"legion.dev/legion/internal/token"
)

// tokenLife is how long a local node has for its first contact.
const tokenLife = time.Hour

// joinNodes starts the agents of these nodes and waits until the nodes are
// Ready. A node that has not joined yet gets a token first.
func (f *Fleet) joinNodes(ctx context.Context, client *api, nodes []Node) error {
	if len(nodes) == 0 {
		return nil
	}
	joined, err := f.makeTokens(ctx, client, nodes)
	if err != nil {
		return err
	}
	if joined {
		// The boot target now wants these agents, too.
		if err := f.writeUnits(); err != nil {
			return err
		}
		if err := f.reload(ctx); err != nil {
			return err
		}
	}
	var units []string
	for _, n := range nodes {
		units = append(units, agentUnit(n.Name))
	}
	f.Progress.Step("starting %d agents", len(nodes))
	if err := f.start(ctx, units); err != nil {
		return err
	}
	return f.waitNodes(ctx, client, nodes)
}

// makeTokens gives each node that has none a join token, one for all of them.
func (f *Fleet) makeTokens(ctx context.Context, client *api, nodes []Node) (bool, error) {
	var without []Node
	for _, n := range nodes {
		if !f.hasJoined(n) {
			without = append(without, n)
		}
	}
	if len(without) == 0 {
		return false, nil
	}
	made, err := f.createToken(ctx, client)
	if err != nil {
		return false, fmt.Errorf("cannot make a join token: %w", err)
	}
	for _, n := range without {
		if err := writeFile(f.tokenFile(n), []byte("LEGION_TOKEN="+made.String()+"\n"), 0o600); err != nil {
			return false, fmt.Errorf("cannot give node %s its join token: %w", n.Name, err)
		}
	}
	return true, nil
}

// hasJoined: the agent has a certificate of its own.
func (f *Fleet) hasJoined(n Node) bool {
	for _, file := range []string{f.tokenFile(n), f.path("nodes", n.Name, "agent", "client.crt")} {
		if _, err := os.Stat(file); err != nil {
			return false
		}
	}
	return true
}

func (f *Fleet) createToken(ctx context.Context, client *api) (token.Token, error) {
	ca, err := client.authority()
	if err != nil {
		return token.Token{}, err
	}
	made, err := token.New(rand.Reader, ca.Raw)
	if err != nil {
		return token.Token{}, err
	}
	secret := map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": token.SecretType,
		"metadata": map[string]string{"name": made.SecretName(), "namespace": token.Namespace},
		"stringData": map[string]string{
			token.FieldID:          made.ID,
			token.FieldSecret:      made.Secret,
			token.FieldExpiration:  time.Now().Add(tokenLife).UTC().Format(time.RFC3339),
			token.FieldDescription: "local nodes of legion up",
		},
	}
	body, err := client.do(ctx, http.MethodPost, "/api/v1/namespaces/"+token.Namespace+"/secrets", secret)
	if err != nil {
		return token.Token{}, err
	}
	return made, body.Close()
}

// authority is the server's CA certificate.
func (a *api) authority() (*x509.Certificate, error) {
	block, _ := pem.Decode(a.ca)
	if block == nil {
		return nil, errors.New("the kubeconfig holds no CA certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

// waitNodes waits until the API says that the nodes are Ready.
func (f *Fleet) waitNodes(ctx context.Context, client *api, nodes []Node) error {
	var waiting []string
	f.Progress.Step("waiting for %d nodes to be Ready", len(nodes))
	err := follow(ctx, client, "/api/v1/nodes", func(n *node) metadata { return n.Metadata }, func(have map[string]*node) bool {
		waiting = waiting[:0]
		for _, n := range nodes {
			if o := have["/"+n.Name]; o == nil || !isTrue(o.Status.Conditions, "Ready") {
				waiting = append(waiting, n.Name)
			}
		}
		if len(waiting) > 0 {
			f.Progress.Step("%d of %d nodes are Ready; waiting for %s", len(nodes)-len(waiting), len(nodes), few(waiting))
		}
		return len(waiting) == 0
	})
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("%d of %d nodes are not Ready (%w): %s\nSee `legion logs -H %s %s`", len(waiting), len(nodes), context.Cause(ctx), few(waiting), f.socket(), agentUnit(waiting[0]))
}

// waitDaemonSets waits until every DaemonSet runs where it should.
func (f *Fleet) waitDaemonSets(ctx context.Context, client *api) error {
	var late []string
	f.Progress.Step("waiting for the daemons")
	err := follow(ctx, client, "/apis/apps/v1/daemonsets", func(d *daemonSet) metadata { return d.Metadata }, func(have map[string]*daemonSet) bool {
		late = late[:0]
		for _, d := range have {
			if d.Status.Observed < d.Metadata.Generation || d.Status.Ready < d.Status.Desired || d.Status.Updated < d.Status.Desired {
				late = append(late, fmt.Sprintf("%s %d/%d", d.Metadata.Name, d.Status.Ready, d.Status.Desired))
			}
		}
		slices.Sort(late)
		if len(late) > 0 {
			f.Progress.Step("waiting for the daemons: %s", few(late))
		}
		return len(late) == 0
	})
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("daemons are not ready (%w): %s\nSee `legion kubectl --kubeconfig %s describe pods -A`", context.Cause(ctx), few(late), f.Kubeconfig())
}

// few names the first of many.
func few(names []string) string {
	if len(names) <= 5 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:4], ", "), len(names)-4)
}
