package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/image"
	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/prefetch"
)

// somewhere is a store that has one image and a registry with two, of which one
// wants a login.
type somewhere struct{ pulled chan string }

func (s somewhere) Ensure(_ context.Context, name string, policy v1.PullPolicy, logins []image.Login) (*ocispec.Image, error) {
	switch {
	case policy == v1.PullNever && name != "here":
		return nil, errors.New("it is not here")
	case policy == v1.PullNever:
	case name == "locked" && (len(logins) != 1 || logins[0].Password != "secret"):
		return nil, errors.New("UNAUTHORIZED")
	default:
		s.pulled <- name
	}
	return &ocispec.Image{ID: "id of " + name}, nil
}

func TestServePrefetch(t *testing.T) {
	store := somewhere{make(chan string, 10)}
	k := &kubelet{images: store, life: t.Context(), now: time.Now, log: slog.New(slog.DiscardHandler)}
	ask := func(body string) (int, map[string]prefetch.Result) {
		t.Helper()
		w := httptest.NewRecorder()
		k.handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/prefetch", strings.NewReader(body)))
		got := map[string]prefetch.Result{}
		for lines := json.NewDecoder(w.Body); w.Code == http.StatusOK && lines.More(); {
			var r prefetch.Result
			if err := lines.Decode(&r); err != nil {
				t.Fatal(err)
			}
			r.Seconds = 0
			got[r.Image] = r
		}
		return w.Code, got
	}
	login, err := json.Marshal([]byte(`{"auths": {"docker.io": {"username": "reader", "password": "secret"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	status, got := ask(`{"images": [{"name": "here"}, {"name": "there"}, {"name": "locked"}]}`)
	if status != http.StatusOK || len(got) != 3 || got["here"] != (prefetch.Result{Image: "here", ID: "id of here"}) ||
		got["there"] != (prefetch.Result{Image: "there", ID: "id of there", Pulled: true}) ||
		got["locked"] != (prefetch.Result{Image: "locked", Pulled: true, Error: "UNAUTHORIZED"}) || <-store.pulled != "there" {
		t.Errorf("%d: %+v", status, got)
	}
	if status, got = ask(`{"images": [{"name": "here", "always": true}]}`); !got["here"].Pulled || <-store.pulled != "here" {
		t.Errorf("always: %d: %+v", status, got)
	}
	if status, got = ask(`{"images": [{"name": "locked", "logins": ["e30=", ` + string(login) + `]}]}`); got["locked"].Error != "" || <-store.pulled != "locked" {
		t.Errorf("with a login: %d: %+v", status, got)
	}
	if status, _ = ask(`{"images": [{"name": "there"}], "background": true}`); status != http.StatusAccepted || <-store.pulled != "there" {
		t.Errorf("by itself: %d", status)
	}
	if status, _ = ask(`{`); status != http.StatusBadRequest {
		t.Errorf("nonsense: %d", status)
	}
	k.images = nil
	if status, _ = ask(`{"images": [{"name": "here"}]}`); status != http.StatusNotImplemented {
		t.Errorf("a node without images: %d", status)
	}
}
