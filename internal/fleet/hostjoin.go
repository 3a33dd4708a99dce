package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/pki"
	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/token"
	"legion.dev/legion/internal/unitdir"
	"legion.dev/legion/internal/unitfile"
)

// joinedUnit is the agent of a host that has joined a fleet elsewhere.
const joinedUnit = "legion-agent.service"

// Joining makes a host a node of a fleet: the agent becomes a unit of its
// legiond.
type Joining struct {
	Line token.Line
	// Node is the node's name; NodeIP its address, empty for the one that leads
	// to the server; Labels "KEY=VALUE,…".
	Node, NodeIP, Labels string
	// Socket is the host's legiond; Dir keeps the agent's credentials; Agent is
	// its program.
	Socket, Dir, Agent string
	Timeout            time.Duration
	Progress           *Progress
}

// Run returns when the node is Ready. A host that is a node already joins again
// where its certificate has expired: its agent was off, or the server away, for
// the last fifth of the certificate's life. Its pods are not touched.
func (j *Joining) Run(ctx context.Context) error {
	if _, err := os.Stat(j.Agent); err != nil {
		return fmt.Errorf("cannot join: legion-agent is not beside legion: %w; `make build` builds it", err)
	}
	host := hostclient.New(j.Socket)
	defer host.Close()
	unit, err := j.unit(ctx, host)
	if err != nil {
		return err
	}
	if err := j.credentials(ctx); err != nil {
		return err
	}
	// As the node tells the time of its heartbeats.
	asked := time.Now().Truncate(time.Second)
	if unit == nil {
		err = j.put(ctx, host)
	} else {
		_, err = host.Do(ctx, joinedUnit, "restart", false)
	}
	if err != nil {
		return fmt.Errorf("cannot make the agent a unit of this host: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, j.Timeout)
	defer cancel()
	return j.ready(ctx, host, asked)
}

// unit is the agent's, nil where this host is no node yet.
func (j *Joining) unit(ctx context.Context, host *hostclient.Client) (*hostapi.Group, error) {
	g, err := host.Group(ctx, joinedUnit)
	var answer *hostapi.Error
	switch {
	case errors.As(err, &answer) && answer.Code == "not-found":
		return nil, nil
	case err != nil:
		return nil, err
	}
	if cert, err := pki.StoredCertificate(j.Dir); err == nil && time.Now().After(cert.NotAfter) {
		return &g, nil
	}
	return nil, fmt.Errorf("this host is a node already: its legiond has %s (%s), %s; `legion logs -H %[4]s %[1]s` shows what it says", joinedUnit, g.Spec.Description, g.ActiveState, j.Socket)
}

// credentials takes those that an interrupted join has left, or gets some: also
// in place of those that have expired.
func (j *Joining) credentials(ctx context.Context) error {
	cert, err := pki.StoredCertificate(j.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return j.ask(ctx)
	case err != nil:
		return fmt.Errorf("what an earlier join left in %s cannot be read: %w; remove that directory to join anew", j.Dir, err)
	}
	ca, err := os.ReadFile(filepath.Join(j.Dir, pki.CAFile))
	if err != nil {
		return fmt.Errorf("what an earlier join left in %s cannot be read: %w; remove that directory to join anew", j.Dir, err)
	}
	authority, err := pki.ParseCertificate(ca)
	if err != nil || token.HashCA(authority.Raw) != j.Line.Token.CA || cert.Subject.CommonName != "system:node:"+j.Node {
		return fmt.Errorf("%s holds the certificate of %q for another join; remove that directory to join anew", j.Dir, cert.Subject.CommonName)
	}
	if time.Now().After(cert.NotAfter) {
		j.Progress.Step("the certificate of node %s expired on %s", j.Node, cert.NotAfter.Format(time.DateOnly))
		return j.ask(ctx)
	}
	return nil
}

// ask gets credentials from the server.
func (j *Joining) ask(ctx context.Context) error {
	j.Progress.Step("asking %s for a certificate", j.Line.Server)
	got, err := pki.Join(ctx, j.Line.Server, j.Line.Token.String(), j.Node)
	if err != nil {
		return err
	}
	return got.Store(j.Dir, j.Line.Server, j.Node)
}

// put has legiond run the agent.
func (j *Joining) put(ctx context.Context, host *hostclient.Client) error {
	group, err := j.group()
	if err != nil {
		return err
	}
	_, err = host.Put(ctx, group)
	return err
}

// group is the agent as a group that legiond keeps and starts at boot.
func (j *Joining) group() (service.Group, error) {
	argv := []string{j.Agent, "--node", j.Node, "--host-socket", j.Socket, "--server", j.Line.Server, "--dir", j.Dir}
	if j.NodeIP != "" {
		argv = append(argv, "--node-ip", j.NodeIP)
	}
	if j.Labels != "" {
		argv = append(argv, "--labels", j.Labels)
	}
	text := fmt.Sprintf(`[Unit]
Description=Node %s of the fleet at %s: the agent
`+unitGoesOn+`
[Service]
Type=notify
ExecStart=%s
Restart=always
RestartSec=0
RestartSteps=5
RestartMaxDelaySec=10
TimeoutStartSec=infinity
`, specifiers(j.Node), specifiers(j.Line.Server), command(argv...))
	file, err := unitfile.Parse(joinedUnit, []byte(text))
	if err != nil {
		return service.Group{}, err
	}
	g, err := unitfile.Compile(joinedUnit, file, nil, unitdir.ThisMachine())
	g.Boot, g.Source.Files = true, nil
	return g, err
}

// ready waits until the server says that the node is Ready, and has heard so
// since.
func (j *Joining) ready(ctx context.Context, host *hostclient.Client, since time.Time) error {
	var pems [3][]byte
	for i, name := range []string{pki.CAFile, pki.CertFile, pki.KeyFile} {
		data, err := os.ReadFile(filepath.Join(j.Dir, name))
		if err != nil {
			return fmt.Errorf("cannot read the node's credentials: %w", err)
		}
		pems[i] = data
	}
	client, err := newAPI(j.Line.Server, pems[0], pems[1], pems[2])
	if err != nil {
		return fmt.Errorf("cannot use the node's credentials in %s: %w", j.Dir, err)
	}
	j.Progress.Step("waiting for node %s to be Ready", j.Node)
	path := "/api/v1/nodes?" + url.Values{"fieldSelector": {"metadata.name=" + j.Node}}.Encode()
	err = follow(ctx, client, path, func(n *node) metadata { return n.Metadata }, func(have map[string]*node) bool {
		n := have["/"+j.Node]
		return n != nil && slices.ContainsFunc(n.Status.Conditions, func(c condition) bool {
			return c.Type == "Ready" && c.Status == "True" && !c.LastHeartbeatTime.Before(since)
		})
	})
	if err == nil || ctx.Err() == nil {
		return err
	}
	why := ""
	if g, err := host.Group(context.WithoutCancel(ctx), joinedUnit); err == nil && len(g.Status.Services) > 0 {
		why = fmt.Sprintf("; %s is %s: %s", joinedUnit, g.ActiveState, g.Status.Services[0].Reason)
	}
	return fmt.Errorf("node %s has joined and is not Ready (%w)%s\nSee `legion logs -H %s %s`", j.Node, context.Cause(ctx), why, j.Socket, joinedUnit)
}
