// Package prefetch is what is asked of a node, and what it answers, where images
// are to be there before anything is run from them (docs/adr/0011-prefetch.md).
package prefetch

// Path is where a node's agent takes a Request, by POST through the node's proxy.
const Path = "prefetch"

// Request is for some images.
type Request struct {
	Images []Image `json:"images"`
	// Background has the node go on by itself: it answers at once, with nothing.
	Background bool `json:"background,omitempty"`
}

// Image is one that is wanted.
type Image struct {
	Name string `json:"name"`
	// Always asks the registry also where the node has an image of this name.
	Always bool `json:"always,omitempty"`
	// Logins are docker configs, as imagePullSecrets have them.
	Logins [][]byte `json:"logins,omitempty"`
}

// Result is what became of an Image; a node answers with one on each line, as
// it has them.
type Result struct {
	Image string `json:"image"`
	// ID is that of the image's configuration.
	ID string `json:"id,omitempty"`
	// Pulled: the registry was asked.
	Pulled bool `json:"pulled,omitempty"`
	// Seconds is how long it took.
	Seconds float64 `json:"seconds"`
	// Error is why the node does not have it.
	Error string `json:"error,omitempty"`
}
