package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/image"
	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/prefetch"
)

// mostPrefetch bounds what is read of a request, with the logins in it.
const mostPrefetch = 4 << 20

// servePrefetch gets images ahead of the pods that will want them, and answers
// with what became of each as soon as it is known.
func (k *kubelet) servePrefetch(w http.ResponseWriter, r *http.Request) {
	var asked prefetch.Request
	if err := json.NewDecoder(io.LimitReader(r.Body, mostPrefetch)).Decode(&asked); err != nil {
		http.Error(w, fmt.Sprintf("the request for images is not understood: %v", err), http.StatusBadRequest)
		return
	}
	if k.images == nil {
		http.Error(w, "the node runs no images: it has no OCI runtime, or was told to have none", http.StatusNotImplemented)
		return
	}
	ctx := r.Context()
	if asked.Background {
		ctx = k.life
	}
	results := make(chan prefetch.Result, len(asked.Images))
	for _, want := range asked.Images {
		go func() { results <- k.prefetch(ctx, want) }()
	}
	if asked.Background {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	for range asked.Images {
		// An image that nobody waits for any more is given up, too.
		if json.NewEncoder(w).Encode(<-results) != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
	}
}

func (k *kubelet) prefetch(ctx context.Context, want prefetch.Image) prefetch.Result {
	began := k.now()
	img, pulled, err := k.getImage(ctx, want)
	result := prefetch.Result{Image: want.Name, Pulled: pulled, Seconds: k.now().Sub(began).Round(time.Millisecond).Seconds()}
	if err != nil {
		k.log.Warn("cannot have an image ahead of its pods", "image", want.Name, "error", err)
		result.Error = err.Error()
	} else {
		result.ID = img.ID
	}
	return result
}

// getImage gives an image, and whether its registry was asked for it.
func (k *kubelet) getImage(ctx context.Context, want prefetch.Image) (img *ocispec.Image, pulled bool, err error) {
	if !want.Always {
		if img, err := k.images.Ensure(ctx, want.Name, v1.PullNever, nil); err == nil {
			return img, false, nil
		}
	}
	var logins []image.Login
	for _, config := range want.Logins {
		more, err := image.Logins(config, want.Name)
		if err != nil {
			k.log.Warn("cannot use a login", "image", want.Name, "error", err)
			continue // as a pod goes on without it
		}
		logins = append(logins, more...)
	}
	img, err = k.images.Ensure(ctx, want.Name, v1.PullAlways, logins)
	return img, true, err
}
