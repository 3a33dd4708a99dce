package apiserver

import (
	"net/http"
	"runtime"
	"time"
)

// A write of the API is carried out when it is its turn: so many at a time for
// each processor. More would gain nothing, since they only wait for the
// processor and the disk, and would take it from the controllers of this
// process, on which most of them depend, and memory besides.
const (
	writesPerProcessor = 8
	// longestTurn is when a write goes on out of turn: nothing may wait for
	// ever for others that wait for it.
	longestTurn = 5 * time.Second
)

// inTurn lets writes through as their turn comes.
func inTurn(next http.Handler, atOnce int) http.Handler {
	turns := make(chan struct{}, atOnce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		default:
			next.ServeHTTP(w, r)
			return
		}
		// Such a request, to exec or the tunnel, goes on for hours.
		if r.Header.Get("Upgrade") != "" {
			next.ServeHTTP(w, r)
			return
		}
		select {
		case turns <- struct{}{}:
		default:
			patience := time.NewTimer(longestTurn)
			defer patience.Stop()
			select {
			case turns <- struct{}{}:
			case <-patience.C:
				next.ServeHTTP(w, r)
				return
			case <-r.Context().Done():
				// The handler says so in its own way.
				next.ServeHTTP(w, r)
				return
			}
		}
		defer func() { <-turns }()
		next.ServeHTTP(w, r)
	})
}

func turnsAtOnce() int { return writesPerProcessor * runtime.GOMAXPROCS(0) }
