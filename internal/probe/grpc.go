package probe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"legion.dev/legion/internal/service"
)

// The health protocol of gRPC (grpc.health.v1) is one request of HTTP/2 with a
// message of one field each way. legiond links no gRPC, so it is written out
// here; the tests ask a server of the real library.

const healthPath = "/grpc.health.v1.Health/Check"

// serving are the statuses of a HealthCheckResponse.
var serving = []string{"UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"}

// Status codes of gRPC that say more than that the probe failed.
const (
	grpcNotFound      = "5"
	grpcUnimplemented = "12"
)

func checkHealth(ctx context.Context, p *service.GRPCProbe) (bool, string) {
	res, err := askHealth(ctx, p)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return false, fmt.Sprintf("timeout: no answer from gRPC service %q in time", p.Service)
	case err != nil:
		return false, err.Error()
	case res.code == grpcUnimplemented:
		return false, "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
	case res.code == grpcNotFound:
		return false, fmt.Sprintf("the server does not know the service %q", p.Service)
	case res.code != "0":
		return false, fmt.Sprintf("error: health rpc failed with code %s: %s", res.code, res.message)
	case res.status != "SERVING":
		return false, fmt.Sprintf("service unhealthy (responded with %q)", res.status)
	}
	return true, ""
}

type healthAnswer struct{ code, message, status string }

func askHealth(ctx context.Context, p *service.GRPCProbe) (healthAnswer, error) {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &protocols, DisableCompression: true}
	defer tr.CloseIdleConnections()

	message := binary.AppendUvarint([]byte{1<<3 | 2}, uint64(len(p.Service)))
	message = append(message, p.Service...)
	if p.Service == "" {
		message = nil
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(host(p.Host), strconv.Itoa(p.Port)), Path: healthPath}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(append(frame, message...)))
	if err != nil {
		return healthAnswer{}, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	req.Header.Set("User-Agent", "legion-probe/1")
	res, err := tr.RoundTrip(req)
	if err != nil {
		return healthAnswer{}, err
	}
	defer res.Body.Close()
	if kind := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || !strings.HasPrefix(kind, "application/grpc") {
		return healthAnswer{}, fmt.Errorf("not a gRPC server: it answered with status %d and content of type %q", res.StatusCode, kind)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return healthAnswer{}, err
	}
	// A refusal may come without a body, and its code with the headers.
	said := res.Trailer
	if said.Get("Grpc-Status") == "" {
		said = res.Header
	}
	a := healthAnswer{code: said.Get("Grpc-Status"), message: said.Get("Grpc-Message")}
	if a.code == "0" {
		a.status, err = healthStatus(body)
	}
	return a, err
}

// healthStatus reads a HealthCheckResponse; fields it does not know it skips.
func healthStatus(body []byte) (string, error) {
	bad := errors.New("the server's answer is no HealthCheckResponse")
	if len(body) < 5 || body[0] != 0 || int(binary.BigEndian.Uint32(body[1:5])) != len(body)-5 {
		return "", bad
	}
	status := uint64(0)
	for rest := body[5:]; len(rest) > 0; {
		key, n := binary.Uvarint(rest)
		if n <= 0 {
			return "", bad
		}
		rest = rest[n:]
		value, n := binary.Uvarint(rest)
		if n <= 0 {
			return "", bad
		}
		rest = rest[n:]
		switch {
		case key == 1<<3:
			status = value
		case key&7 == 0:
		case key&7 == 2 && value <= uint64(len(rest)):
			rest = rest[value:]
		default:
			return "", bad
		}
	}
	if status >= uint64(len(serving)) {
		return strconv.FormatUint(status, 10), nil
	}
	return serving[status], nil
}
