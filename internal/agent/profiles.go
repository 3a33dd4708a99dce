package agent

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"legion.dev/legion/internal/ocispec"
	"legion.dev/legion/internal/podspec"
)

// profileAgain is how often a seccomp profile that keeps a pod back is read.
const profileAgain = 10 * time.Second

// profiles reads the seccomp profiles that a pod names.
func (p *pods) profiles(r *record) map[string]ocispec.Profile {
	out := map[string]ocispec.Profile{}
	for _, name := range podspec.Profiles(r.pod) {
		one := ocispec.Profile{Path: filepath.Join(p.seccomp, name)}
		if !filepath.IsLocal(name) {
			one.Err = errors.New("it is not below the directory of profiles")
		} else {
			one.Text, one.Err = os.ReadFile(one.Path)
		}
		out[name] = one
	}
	return out
}

// compileAgain compiles a pod that a file of the node may have kept back.
func (p *pods) compileAgain(r *record, now time.Time) {
	if r.pod == nil || r.lookAgain.IsZero() || now.Before(r.lookAgain) {
		return
	}
	if r.lookAgain = (time.Time{}); len(r.blocked()) > 0 {
		p.compile(r)
	}
}
