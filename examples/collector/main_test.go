package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReceive(t *testing.T) {
	c := &collector{dir: t.TempDir(), nodes: map[string]*stats{}}
	routes := c.routes()
	post := func(body string) int {
		w := httptest.NewRecorder()
		routes.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/lines", strings.NewReader(body)))
		return w.Code
	}
	if code := post(`{"node":"n1","file":"/var/log/a","time":"2026-01-02T03:04:05Z","line":"one"}
{"node":"n2","file":"/var/log/b","time":"2026-01-02T03:04:05Z","line":"two"}`); code != http.StatusNoContent {
		t.Fatalf("got status %d", code)
	}
	got, err := os.ReadFile(filepath.Join(c.dir, "n1.log"))
	if err != nil || string(got) != "2026-01-02T03:04:05Z /var/log/a one\n" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, bad := range []string{`{"node":"../n1","line":"x"}`, `{"node":"","line":"x"}`, `{`} {
		if code := post(bad); code != http.StatusBadRequest {
			t.Errorf("%s: got status %d", bad, code)
		}
	}
	w := httptest.NewRecorder()
	routes.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/stats", nil))
	if !strings.Contains(w.Body.String(), `"n2"`) {
		t.Errorf("stats: %s", w.Body)
	}
}
