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

// requests measures the requests that concern all units of a supervisor, each a
// number of times: from the request to the last byte of the answer.
func requests(s *supervisor, dir string, pid, services, times int) (string, error) {
	reload, list, err := s.requests(dir, pid, times)
	if err != nil {
		return "", err
	}
	row := fmt.Sprintf("| %s | %d |", s.name, services)
	for _, took := range [][]time.Duration{reload, list} {
		slices.Sort(took)
		row += fmt.Sprintf(" %.1f ms | %.1f ms |", ms(took[len(took)/2]), ms(took[len(took)-1]))
	}
	return row + fmt.Sprintf(" %d |", times), nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// repeat does it a number of times and takes the time of each.
func repeat(times int, do func() error) ([]time.Duration, error) {
	var took []time.Duration
	for range times {
		begin := time.Now()
		if err := do(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(begin))
	}
	return took, nil
}

// legiondRequests makes those of `legion reload` and `legion list`.
func legiondRequests(dir string, _, times int) (reload, list []time.Duration, err error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "host.sock"))
		},
	}}
	defer client.CloseIdleConnections()
	reload, err = repeat(times, func() error { return ask(client, http.MethodPost, "/v1/reload") })
	if err != nil {
		return nil, nil, err
	}
	list, err = repeat(times, func() error { return ask(client, http.MethodGet, "/v1/groups") })
	return reload, list, err
}

func ask(client *http.Client, method, path string) error {
	q, err := http.NewRequest(method, "http://legiond"+path, nil)
	if err != nil {
		return err
	}
	res, err := client.Do(q)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s", method, path, res.Status)
	}
	return nil
}
