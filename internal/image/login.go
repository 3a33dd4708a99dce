package image

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Login is how to be known to a registry; the zero value is to be nobody.
type Login struct {
	Username, Password           string
	IdentityToken, RegistryToken string
}

// loginEntry is one registry's of a docker config.
type loginEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Logins finds those that a docker config has for an image: a config.json with
// "auths", or the older file without. The most special comes first. A key is a
// host, with a path if it is for some repositories only; labels of the host may
// be patterns ("*.example.org"), as Kubernetes has it.
func Logins(config []byte, image string) ([]Login, error) {
	full, err := Normalize(image)
	if err != nil {
		return nil, err
	}
	var file struct {
		Auths map[string]loginEntry `json:"auths"`
	}
	if err := json.Unmarshal(config, &file); err != nil {
		return nil, fmt.Errorf("cannot read a docker config: %w", err)
	}
	entries := file.Auths
	if entries == nil {
		// The older file has entries of objects only.
		if err := json.Unmarshal(config, &entries); err != nil {
			return nil, fmt.Errorf("cannot read a docker config: %w", err)
		}
	}
	var keys []string
	for key := range entries {
		if matches(key, full) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b string) int { return strings.Compare(trimmed(b), trimmed(a)) })
	var out []Login
	for _, key := range keys {
		l, err := entries[key].login()
		if err != nil {
			return nil, fmt.Errorf("cannot read a docker config: entry %q: %w", key, err)
		}
		if l != (Login{}) && !slices.Contains(out, l) {
			out = append(out, l)
		}
	}
	return out, nil
}

func (e loginEntry) login() (Login, error) {
	l := Login{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth == "" {
		return l, nil
	}
	text, err := base64.StdEncoding.DecodeString(e.Auth)
	if err != nil {
		return l, fmt.Errorf("auth is no base64")
	}
	name, password, ok := strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
	if !ok {
		return l, fmt.Errorf("auth is not of the form user:password")
	}
	l.Username, l.Password = name, password
	return l, nil
}

// trimmed is a key as a host and a path.
func trimmed(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	for _, version := range []string{"/v1", "/v2"} {
		key = strings.TrimSuffix(strings.TrimSuffix(key, "/"), version)
	}
	switch host, rest, _ := strings.Cut(key, "/"); host {
	case "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return path.Join("docker.io", rest)
	}
	return key
}

// matches says whether a key is for the image.
func matches(key, full string) bool {
	wantHost, wantPath, _ := strings.Cut(trimmed(key), "/")
	host, repository, _ := strings.Cut(full, "/")
	if wantPath != "" && !strings.HasPrefix(repository, wantPath) {
		return false
	}
	want, have := strings.Split(wantHost, "."), strings.Split(host, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// UserLogins are those of the docker config of whoever runs the program:
// DOCKER_CONFIG, or the home directory's .docker.
func UserLogins(image string) ([]Login, error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil
		}
		dir = filepath.Join(home, ".docker")
	}
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, nil // most machines have none
	}
	return Logins(text, image)
}
