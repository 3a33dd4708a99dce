package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sys/unix"
)

// Pull gets what the registry has now under a name. Each login is tried in
// turn; without one the registry is asked as nobody.
func (s *Store) Pull(ctx context.Context, image string, logins []Login) (*Image, error) {
	full, err := Normalize(image)
	if err != nil {
		return nil, err
	}
	ref, err := name.ParseReference(full)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse image name %q: %w", image, err)
	}
	nobody := len(logins) == 0
	if nobody {
		logins = []Login{{}}
	}
	var problems []error
	for _, l := range logins {
		img, err := s.pull(ctx, full, ref, l)
		if err == nil || ctx.Err() != nil {
			return img, err
		}
		problems = append(problems, err)
	}
	err = errors.Join(problems...)
	// The registry's own words do not tell whether it was given a login.
	var refused *transport.Error
	switch {
	case !errors.As(err, &refused) || refused.StatusCode != http.StatusUnauthorized:
		return nil, fmt.Errorf("failed to pull %s: %w", full, err)
	case nobody:
		return nil, fmt.Errorf("failed to pull %s without a login: %w", full, err)
	}
	return nil, fmt.Errorf("failed to pull %s with the logins for it: %w", full, err)
}

func (s *Store) pull(ctx context.Context, full string, ref name.Reference, l Login) (*Image, error) {
	desc, err := remote.Get(ref, remote.WithContext(ctx), remote.WithAuth(l.authenticator()),
		remote.WithTransport(remote.DefaultTransport), remote.WithPlatform(s.platform()))
	if err != nil {
		return nil, err
	}
	repository, _, _ := strings.Cut(full, "@")
	if at := strings.LastIndex(repository, ":"); at > strings.LastIndex(repository, "/") {
		repository = repository[:at]
	}
	fixed := repository + "@" + desc.Digest.String()
	if known := s.known(fixed, full); known != nil {
		return known, nil
	}
	img, err := desc.Image()
	if err != nil {
		return nil, fmt.Errorf("no image for %s in it: %w", s.platform(), err)
	}
	names := []string{full}
	if strings.Contains(full, "@") {
		names = nil
	}
	return s.add(ctx, img, names, []string{fixed})
}

// known gives the image that a registry's digest stands for where it is here,
// and notes its name.
func (s *Store) known(fixed, full string) *Image {
	found, err := s.Find(fixed)
	if err != nil {
		return nil
	}
	if strings.Contains(full, "@") {
		return found
	}
	err = s.update(func(x *index) error {
		if x.byID(found.ID) == nil {
			return ErrNotFound
		}
		found = x.put(Image{ID: found.ID, Names: []string{full}})
		return nil
	})
	if err != nil {
		return nil
	}
	return found
}

// authenticator is the login in the registry client's terms.
func (l Login) authenticator() authn.Authenticator {
	if l == (Login{}) {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken,
	})
}

func (s *Store) platform() v1.Platform {
	p := v1.Platform{OS: "linux", Architecture: s.options.Arch}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return p
}

// add unpacks an image and puts it in the list. Nothing is pruned meanwhile.
func (s *Store) add(ctx context.Context, img v1.Image, names, digests []string) (*Image, error) {
	unlock, err := s.lock("pulls", unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer unlock()
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("its configuration: %w", err)
	}
	id, err := img.ConfigName()
	if err != nil {
		return nil, fmt.Errorf("its configuration: %w", err)
	}
	if want := s.platform(); (file.OS != "" && file.OS != want.OS) || (file.Architecture != "" && file.Architecture != want.Architecture) {
		return nil, fmt.Errorf("it is for %s/%s and this machine is %s", file.OS, file.Architecture, want)
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, fmt.Errorf("its layers: %w", err)
	}
	out := Image{
		ID: id.String(), Names: names, Digests: digests, Platform: file.OS + "/" + file.Architecture,
		Config: Config{
			Entrypoint: file.Config.Entrypoint, Cmd: file.Config.Cmd, Env: file.Config.Env, User: file.Config.User,
			WorkingDir: file.Config.WorkingDir, StopSignal: file.Config.StopSignal,
		},
		Added: s.options.Now().UTC(),
	}
	if out.Layers, err = s.unpackAll(ctx, layers); err != nil {
		return nil, err
	}
	out.Passwd, out.Group = s.accounts(&out, "etc/passwd"), s.accounts(&out, "etc/group")
	var kept Image
	err = s.update(func(x *index) error {
		kept = *x.put(out)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &kept, nil
}
