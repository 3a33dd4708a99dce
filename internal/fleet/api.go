package fleet

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// api is a client of the fleet's own API server: plain HTTPS and JSON, so that
// the command line links no Kubernetes code. The types hold what is read here.
type api struct {
	base   string
	ca     []byte // PEM
	client *http.Client
}

type (
	object struct {
		Metadata metadata `json:"metadata"`
	}
	metadata struct {
		Name            string            `json:"name"`
		Namespace       string            `json:"namespace"`
		Generation      int64             `json:"generation"`
		ResourceVersion string            `json:"resourceVersion"`
		Deletion        *time.Time        `json:"deletionTimestamp"`
		Owners          []ownerReference  `json:"ownerReferences"`
		Labels          map[string]string `json:"labels"`
	}
	ownerReference struct {
		Kind string `json:"kind"`
		Name string `json:"name"`
	}
	condition struct {
		Type    string `json:"type"`
		Status  string `json:"status"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
		// LastHeartbeatTime is of nodes only.
		LastHeartbeatTime time.Time `json:"lastHeartbeatTime"`
	}
	node struct {
		object
		Status struct {
			Conditions []condition `json:"conditions"`
			Addresses  []struct {
				Type    string `json:"type"`
				Address string `json:"address"`
			} `json:"addresses"`
		} `json:"status"`
	}
	daemonSet struct {
		object
		Status struct {
			Desired  int   `json:"desiredNumberScheduled"`
			Ready    int   `json:"numberReady"`
			Updated  int   `json:"updatedNumberScheduled"`
			Observed int64 `json:"observedGeneration"`
		} `json:"status"`
	}
	pod struct {
		object
		Spec struct {
			NodeName string `json:"nodeName"`
		} `json:"spec"`
		Status struct {
			Phase      string            `json:"phase"`
			Reason     string            `json:"reason"`
			Message    string            `json:"message"`
			Conditions []condition       `json:"conditions"`
			Containers []containerStatus `json:"containerStatuses"`
		} `json:"status"`
	}
	containerStatus struct {
		Name  string `json:"name"`
		Ready bool   `json:"ready"`
		State struct {
			Waiting *struct {
				Reason  string `json:"reason"`
				Message string `json:"message"`
			} `json:"waiting"`
		} `json:"state"`
	}
)

func isTrue(conditions []condition, kind string) bool {
	for _, c := range conditions {
		if c.Type == kind {
			return c.Status == "True"
		}
	}
	return false
}

// openAPI reads a kubeconfig as legion-server writes it: data in place, one
// cluster, one user.
func openAPI(kubeconfig string) (*api, error) {
	data, err := os.ReadFile(kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("cannot read the kubeconfig: %w", err)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string `yaml:"server"`
				CA     string `yaml:"certificate-authority-data"`
			} `yaml:"cluster"`
		} `yaml:"clusters"`
		Users []struct {
			User struct {
				Cert string `yaml:"client-certificate-data"`
				Key  string `yaml:"client-key-data"`
			} `yaml:"user"`
		} `yaml:"users"`
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("cannot read the kubeconfig %s: %w", kubeconfig, err)
	}
	if len(config.Clusters) == 0 || len(config.Users) == 0 {
		return nil, fmt.Errorf("cannot read the kubeconfig %s: it names no cluster or no user", kubeconfig)
	}
	cluster, user := config.Clusters[0].Cluster, config.Users[0].User
	var pems [3][]byte
	for i, s := range []string{cluster.CA, user.Cert, user.Key} {
		if pems[i], err = base64.StdEncoding.DecodeString(s); err != nil {
			return nil, fmt.Errorf("cannot read the kubeconfig %s: %w", kubeconfig, err)
		}
	}
	client, err := newAPI(cluster.Server, pems[0], pems[1], pems[2])
	if err != nil {
		return nil, fmt.Errorf("cannot read the kubeconfig %s: %w", kubeconfig, err)
	}
	return client, nil
}

// newAPI is a client with a certificate; all PEM.
func newAPI(server string, ca, certPEM, keyPEM []byte) (*api, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("no certificate authority in it")
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	return &api{
		base: server,
		ca:   ca,
		client: &http.Client{Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2: true,
		}},
	}, nil
}

// statusError is an answer of the API that is not what was asked for.
type statusError struct {
	Code    int
	Message string
}

func (e *statusError) Error() string { return e.Message }

func isStatus(err error, code int) bool {
	var s *statusError
	return errors.As(err, &s) && s.Code == code
}

func (a *api) do(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("the fleet's API does not answer: %w", err)
	}
	if resp.StatusCode < 300 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(data, &status) != nil || status.Message == "" {
		status.Message = string(data)
	}
	return nil, &statusError{resp.StatusCode, fmt.Sprintf("the fleet's API answers %s to %s %s: %s", resp.Status, method, path, status.Message)}
}

// list is one answer of the API with the version that a watch goes on from.
type list[T any] struct {
	Metadata metadata `json:"metadata"`
	Items    []T      `json:"items"`
}

func get[T any](ctx context.Context, a *api, path string) (T, error) {
	var out T
	body, err := a.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return out, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&out); err != nil {
		return out, fmt.Errorf("read %s: %w", path, err)
	}
	return out, nil
}

// delete removes an object; that it is not there is no error.
func (a *api) delete(ctx context.Context, path string, grace *int) error {
	var options any
	if grace != nil {
		options = map[string]any{"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": *grace}
	}
	body, err := a.do(ctx, http.MethodDelete, path, options)
	if isStatus(err, http.StatusNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return body.Close()
}

// follow lists a collection and watches it, and calls done with all items, by
// namespace/name, after the list and after each change, until done says so. A
// watch that breaks (the server restarts) is begun again.
func follow[T any](ctx context.Context, a *api, path string, meta func(*T) metadata, done func(map[string]*T) bool) error {
	for {
		err := followOnce(ctx, a, path, meta, done)
		var status *statusError
		if err == nil || ctx.Err() != nil || (errors.As(err, &status) && status.Code < 500 && status.Code != http.StatusGone && status.Code != http.StatusTooManyRequests) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond): // the server is on its way back
		}
	}
}

var errWatchEnded = errors.New("the watch ended")

func followOnce[T any](ctx context.Context, a *api, path string, meta func(*T) metadata, done func(map[string]*T) bool) error {
	first, err := get[list[T]](ctx, a, path)
	if err != nil {
		return err
	}
	items := map[string]*T{}
	key := func(t *T) string { m := meta(t); return m.Namespace + "/" + m.Name }
	for i := range first.Items {
		items[key(&first.Items[i])] = &first.Items[i]
	}
	if done(items) {
		return nil
	}
	query := url.Values{"watch": {"true"}, "resourceVersion": {first.Metadata.ResourceVersion}}
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	body, err := a.do(ctx, http.MethodGet, path+separator+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := json.NewDecoder(bufio.NewReader(body))
	for {
		var event struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := lines.Decode(&event); err != nil {
			return fmt.Errorf("%w: %w", errWatchEnded, err)
		}
		item := new(T)
		if err := json.Unmarshal(event.Object, item); err != nil {
			return err
		}
		switch event.Type {
		case "ADDED", "MODIFIED":
			items[key(item)] = item
		case "DELETED":
			delete(items, key(item))
		default:
			return errWatchEnded
		}
		if done(items) {
			return nil
		}
	}
}
