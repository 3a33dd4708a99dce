package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"time"
)

// requests measures the requests of legiond's API that concern all its units,
// each a number of times: from the request to the last byte of the answer.
func requests(dir string, services, times int) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "host.sock"))
		},
	}}
	defer client.CloseIdleConnections()
	row := fmt.Sprintf("| %d |", services)
	for _, q := range [][2]string{{http.MethodPost, "/v1/reload"}, {http.MethodGet, "/v1/groups"}} {
		var took []time.Duration
		for range times {
			d, err := ask(client, q[0], q[1])
			if err != nil {
				return "", err
			}
			took = append(took, d)
		}
		slices.Sort(took)
		row += fmt.Sprintf(" %.1f ms | %.1f ms |", ms(took[len(took)/2]), ms(took[len(took)-1]))
	}
	return row + fmt.Sprintf(" %d |", times), nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func ask(client *http.Client, method, path string) (time.Duration, error) {
	q, err := http.NewRequest(method, "http://legiond"+path, nil)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	res, err := client.Do(q)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return 0, err
	}
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s %s: %s", method, path, res.Status)
	}
	return time.Since(begin), nil
}
