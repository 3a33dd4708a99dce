package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"
)

// line is one line on its way.
type line struct {
	Node string    `json:"node"`
	File string    `json:"file"`
	Time time.Time `json:"time"`
	Line string    `json:"line"`
}

// shipper sends batches and does not give up.
type shipper struct {
	url     string
	client  http.Client
	shipped atomic.Int64
	// trouble says why nothing is taken just now; nil is none.
	trouble atomic.Pointer[string]
}

const (
	firstPause = 200 * time.Millisecond
	maxPause   = 30 * time.Second
	lastWord   = 3 * time.Second
)

// ship sends a batch until the collector has taken it, or ctx ends. A batch that
// the collector calls malformed is dropped, or it would block all others.
func (s *shipper) ship(ctx context.Context, lines []line) error {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	for _, l := range lines {
		if err := enc.Encode(l); err != nil {
			return err
		}
	}
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		status, err := s.post(ctx, body.Bytes())
		if err == nil {
			if s.trouble.Swap(nil) != nil {
				log.Printf("the collector takes lines again")
			}
			s.shipped.Add(int64(len(lines)))
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge {
			log.Printf("dropped %d lines: %v", len(lines), err)
			return nil
		}
		text := err.Error()
		if s.trouble.Swap(&text) == nil {
			log.Printf("%v; trying again, nothing is lost", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + rand.N(pause)): // spread, so that a fleet does not come all at once
		}
	}
}

// post sends a batch once. A request that is on its way when ctx ends has a
// little longer, or its lines would be sent again by the next run.
func (s *shipper) post(asked context.Context, body []byte) (int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(asked), 30*time.Second)
	defer cancel()
	defer context.AfterFunc(asked, func() { time.AfterFunc(lastWord, cancel) })()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/v1/lines", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := s.client.Do(req)
	if err != nil {
		return 0, fmt.Errorf("cannot ship: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if resp.StatusCode >= 300 {
		return resp.StatusCode, fmt.Errorf("cannot ship: the collector answers %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return resp.StatusCode, nil
}
