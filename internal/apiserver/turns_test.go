package apiserver

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Int32
		release := make(chan struct{})
		var busy atomic.Bool
		handler := inTurn(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			now.Add(1)
			<-release
			now.Add(-1)
		}), &turns{make(chan struct{}, 2), make(chan struct{}, 1), busy.Load})
		ask := func(method string, header ...string) context.CancelFunc {
			ctx, cancel := context.WithCancel(t.Context())
			r := httptest.NewRequestWithContext(ctx, method, "/", nil)
			for _, h := range header {
				r.Header.Set(h, "x")
			}
			go handler.ServeHTTP(httptest.NewRecorder(), r)
			return cancel
		}
		want := func(n int32, what string) {
			t.Helper()
			if synctest.Wait(); now.Load() != n {
				t.Fatalf("%s: %d are carried out, want %d", what, now.Load(), n)
			}
		}
		for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
			ask(method)
		}
		want(2, "four writes")
		ask("GET")
		ask("POST", "Upgrade")
		want(4, "a read and an upgrade beside them")
		cancel := ask("POST")
		want(4, "one more write")
		cancel()
		want(5, "a write given up goes on to be answered")
		time.Sleep(longestTurn + time.Second)
		want(7, "who has waited long enough")
		close(release)
		want(0, "the end")
		ask("POST")
		want(0, "after the end")
		release = make(chan struct{})
		busy.Store(true)
		ask("POST")
		ask("POST")
		ask("POST")
		want(1, "three writes while the controllers write")
		ask("GET")
		want(2, "a read beside them")
		time.Sleep(longestTurn + time.Second)
		want(4, "who has waited long enough, then")
		close(release)
		want(0, "the second end")
	})
}
