package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// entry is one of an archive; Mode 0 is 0644.
type entry struct {
	name, text, link string
	kind             byte
	mode             int64
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Linkname: e.link, Uid: os.Geteuid(), Gid: os.Getegid(), ModTime: time.Unix(1e9, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.Typeflag != tar.TypeDir {
			if h.Name = strings.TrimRight(h.Name, "/"); h.Name == "" {
				h.Name = "."
			}
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.text))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e.text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layerOf(t testing.TB, archive []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// makeImage is an image for this machine with a layer for each archive.
func makeImage(t testing.TB, config v1.Config, archives ...[]byte) v1.Image {
	t.Helper()
	img := v1.Image(empty.Image)
	for _, a := range archives {
		var err error
		if img, err = mutate.AppendLayers(img, layerOf(t, a)); err != nil {
			t.Fatal(err)
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

// open gives a store with a clock that the test moves.
func open(t testing.TB) (*Store, *time.Time) {
	t.Helper()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// Whoever is not root cannot make the devices that overlayfs wants.
	s, err := Open(t.TempDir(), Options{Flat: os.Geteuid() != 0, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return s, &now
}

// serve runs a registry and counts what is asked of it.
type served struct {
	host string
	mu   sync.Mutex
	asks []string
}

func serve(t testing.TB, password string) *served {
	t.Helper()
	r := &served{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if _, p, _ := q.BasicAuth(); password != "" && p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.mu.Lock()
		r.asks = append(r.asks, q.Method+" "+q.URL.Path)
		r.mu.Unlock()
		inner.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// blobs counts the blobs that were fetched since the last call.
func (r *served) blobs() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, a := range r.asks {
		if strings.HasPrefix(a, "GET ") && strings.Contains(a, "/blobs/") {
			n++
		}
	}
	r.asks = nil
	return n
}

func (r *served) push(t testing.TB, at string, img v1.Image, l Login) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + at)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithAuth(l.authenticator())); err != nil {
		t.Fatal(err)
	}
	r.blobs()
	return ref.String()
}

// TestPull: layers are fetched and unpacked once, a tag that moved is followed,
// and what is known is not fetched again.
func TestPull(t *testing.T) {
	s, _ := open(t)
	r := serve(t, "")
	base := pack(t, entry{name: "etc/", kind: tar.TypeDir}, entry{name: "etc/passwd", text: "app:x:7:8::/:/x\n"})
	one := makeImage(t, v1.Config{Entrypoint: []string{"/app"}, User: "app", StopSignal: "SIGQUIT"}, base, pack(t, entry{name: "app", text: "one", mode: 0o755}))
	two := makeImage(t, v1.Config{Entrypoint: []string{"/app"}}, base, pack(t, entry{name: "app", text: "two", mode: 0o755}))
	at := r.push(t, "team/app:v1", one, Login{})
	first, err := s.Pull(t.Context(), at, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := r.blobs(); n != 3 {
		t.Errorf("%d blobs were fetched, want a configuration and two layers", n)
	}
	if first.Config.User != "app" || first.Config.StopSignal != "SIGQUIT" || first.Passwd != "app:x:7:8::/:/x\n" || len(first.Layers) != 2 {
		t.Errorf("the image: %+v", first)
	}
	if got := read(t, s, first, "app"); got != "one" {
		t.Errorf("app holds %q", got)
	}
	if again, err := s.Pull(t.Context(), at, nil); err != nil || again.ID != first.ID || r.blobs() != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	r.push(t, "team/app:v1", two, Login{})
	second, err := s.Pull(t.Context(), at, nil)
	if err != nil || second.ID == first.ID {
		t.Fatalf("a tag that moved: %+v, %v", second, err)
	}
	if want := 2; !s.Flat() && r.blobs() != want {
		t.Errorf("more than %d blobs were fetched, though the lowest layer was there", want)
	}
	old, err := s.Find(first.ID)
	if err != nil || len(old.Names) != 0 {
		t.Errorf("the image before keeps the name: %+v, %v", old, err)
	}
	// By digest, the image before is still to be had, and is here.
	digest, err := one.Digest()
	if err != nil {
		t.Fatal(err)
	}
	fixed := r.host + "/team/app@" + digest.String()
	if got, err := s.Find(fixed); err != nil || got.ID != first.ID {
		t.Errorf("by digest: %+v, %v", got, err)
	}
	if got, err := s.Pull(t.Context(), r.host+"/team/app:v1@"+digest.String(), nil); err != nil || got.ID != first.ID || r.blobs() != 0 {
		t.Errorf("pulled by digest: %+v, %v", got, err)
	}
}

// read reads a file of the topmost layer that has it.
func read(t testing.TB, s *Store, i *Image, name string) string {
	t.Helper()
	dirs := s.Layers(i)
	for _, dir := range slices.Backward(dirs) {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			return string(text)
		}
	}
	t.Fatalf("no %s in %v", name, dirs)
	return ""
}

// TestPullPlatform: of an index this machine's image is taken, and an image of
// another machine is refused.
func TestPullPlatform(t *testing.T) {
	s, _ := open(t)
	r := serve(t, "")
	other := makeImage(t, v1.Config{}, pack(t, entry{name: "other"}))
	file, _ := other.ConfigFile()
	file = file.DeepCopy()
	file.Architecture = "s390x"
	other, err := mutate.ConfigFile(other, file)
	if err != nil {
		t.Fatal(err)
	}
	own := makeImage(t, v1.Config{}, pack(t, entry{name: "own", text: "x"}))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: own, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	ref, err := name.ParseReference(r.host + "/both:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	got, err := s.Pull(t.Context(), ref.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if id, _ := own.ConfigName(); got.ID != id.String() {
		t.Errorf("taken was %s, want %s", got.ID, id)
	}
	at := r.push(t, "other:1", other, Login{})
	if _, err := s.Pull(t.Context(), at, nil); err == nil || !strings.Contains(err.Error(), "it is for linux/s390x") {
		t.Errorf("another machine's image: %v", err)
	}
}

// TestPullLogin: the registry is given the login that a docker config has for
// it, and a wrong one is said.
func TestPullLogin(t *testing.T) {
	s, _ := open(t)
	r := serve(t, "secret")
	at := r.push(t, "app:1", makeImage(t, v1.Config{}, pack(t, entry{name: "x"})), Login{Username: "u", Password: "secret"})
	if _, err := s.Pull(t.Context(), at, nil); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without a login: %v", err)
	}
	config := `{"auths":{"` + r.host + `":{"auth":"dTp3cm9uZw=="},"http://` + r.host + `/app":{"username":"u","password":"secret"}}}`
	logins, err := Logins([]byte(config), at)
	if err != nil || len(logins) != 2 {
		t.Fatalf("logins: %+v, %v", logins, err)
	}
	if _, err := s.Pull(t.Context(), at, logins[1:]); err == nil {
		t.Error("a wrong password was taken")
	}
	slices.Reverse(logins) // the wrong one first: the next is tried
	if _, err := s.Pull(t.Context(), at, logins); err != nil {
		t.Error(err)
	}
}

// TestPullBroken: a layer that is not what the image says leaves nothing behind.
func TestPullBroken(t *testing.T) {
	s, _ := open(t)
	good := layerOf(t, pack(t, entry{name: "good", text: "x"}))
	_, err := s.unpackAll(t.Context(), []v1.Layer{good, liar{layerOf(t, pack(t, entry{name: "bad", text: "y"}))}})
	if err == nil || !strings.Contains(err.Error(), "layer 2 of 2: its content has the digest") {
		t.Errorf("a wrong layer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.unpackAll(ctx, []v1.Layer{layerOf(t, pack(t, entry{name: "z", text: "z"}))}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := s.Prune(t.Context(), Prune{}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"layers", "flat", "tmp"} {
		if left, err := os.ReadDir(s.path(dir)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

// liar says another digest than it has.
type liar struct{ v1.Layer }

func (liar) DiffID() (v1.Hash, error) {
	return v1.NewHash("sha256:" + strings.Repeat("ab", 32))
}

// TestConcurrentPulls: many pulls of images with common layers get along, with
// each other and with prunes.
func TestConcurrentPulls(t *testing.T) {
	s, _ := open(t)
	other, err := Open(s.dir, s.options)
	if err != nil {
		t.Fatal(err)
	}
	r := serve(t, "")
	base := pack(t, entry{name: "base", text: strings.Repeat("x", 1<<16)})
	var at []string
	for _, n := range []string{"aa", "bb", "cc"} {
		at = append(at, r.push(t, n+":1", makeImage(t, v1.Config{}, base, pack(t, entry{name: n, text: n})), Login{}))
	}
	var all sync.WaitGroup
	for n := range 12 {
		all.Go(func() {
			which := []*Store{s, other}[n%2]
			if _, err := which.Pull(t.Context(), at[n%3], nil); err != nil {
				t.Error(err)
			}
			if _, err := which.Prune(t.Context(), Prune{Nameless: true}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	list, err := s.List()
	if err != nil || len(list) != 3 {
		t.Fatalf("%d images, %v", len(list), err)
	}
	for i := range list {
		if got := read(t, s, &list[i], "base"); len(got) != 1<<16 {
			t.Errorf("%s: base has %d bytes", list[i].Names, len(got))
		}
	}
}

// TestImport: archives of docker and of the OCI's layout, plain and compressed.
func TestImport(t *testing.T) {
	img := makeImage(t, v1.Config{Cmd: []string{"/app"}}, pack(t, entry{name: "app", text: "imported"}))
	tag, err := name.NewTag("example.org/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	var docker bytes.Buffer
	if err := tarball.Write(tag, img, &docker); err != nil {
		t.Fatal(err)
	}
	named := ociArchive(t, img, map[string]string{"org.opencontainers.image.ref.name": "example.org/team/app:v1"})
	nameless := ociArchive(t, img, map[string]string{"org.opencontainers.image.ref.name": "v1"})
	for what, test := range map[string]struct {
		archive  []byte
		as, want string
	}{
		"docker":          {docker.Bytes(), "", "example.org/team/app:v1"},
		"docker, gzip":    {compress(t, docker.Bytes()), "", "example.org/team/app:v1"},
		"docker, renamed": {docker.Bytes(), "busybox", "docker.io/library/busybox:latest"},
		"OCI":             {named, "", "example.org/team/app:v1"},
		"OCI, gzip":       {compress(t, named), "", "example.org/team/app:v1"},
		"OCI, given name": {nameless, "x/y:1", "docker.io/x/y:1"},
	} {
		t.Run(what, func(t *testing.T) {
			s, _ := open(t)
			got, err := s.Import(t.Context(), bytes.NewReader(test.archive), test.as)
			if err != nil || len(got) != 1 {
				t.Fatalf("%v, %v", got, err)
			}
			if !slices.Equal(got[0].Names, []string{test.want}) || read(t, s, got[0], "app") != "imported" {
				t.Errorf("%+v", got[0])
			}
			if found, err := s.Find(test.want); err != nil || found.ID != got[0].ID {
				t.Errorf("found: %v, %v", found, err)
			}
		})
	}
	s, _ := open(t)
	for what, test := range map[string]struct {
		archive []byte
		want    string
	}{
		"nameless":     {nameless, "has no name; give one with --name"},
		"no archive":   {[]byte("hello, this is no archive at all"), "it is no archive"},
		"some files":   {pack(t, entry{name: "x"}), "neither an archive of docker"},
		"a broken one": {docker.Bytes()[:docker.Len()/2+100], "it is no archive"},
	} {
		if _, err := s.Import(t.Context(), bytes.NewReader(test.archive), ""); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", what, err, test.want)
		}
	}
}

func compress(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ociArchive(t testing.TB, img v1.Image, annotations map[string]string) []byte {
	t.Helper()
	dir := t.TempDir()
	at, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		t.Fatal(err)
	}
	if err := at.AppendImage(img, layout.WithAnnotations(annotations)); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestPrune: what is in use, young or named stays as asked; the images of no
// use for longest go first, and common layers only with their last image.
func TestPrune(t *testing.T) {
	s, now := open(t)
	base := pack(t, entry{name: "base", text: strings.Repeat("x", 4000)})
	put := func(n string) *Image {
		t.Helper()
		img, err := s.add(t.Context(), makeImage(t, v1.Config{}, base, pack(t, entry{name: n, text: n})), []string{"docker.io/library/" + n + ":latest"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		*now = now.Add(time.Hour)
		return img
	}
	a, b := put("a"), put("b")
	put("c")
	if err := s.Touch(a.ID); err != nil { // so b is of no use for longest
		t.Fatal(err)
	}
	prune := func(p Prune) string {
		t.Helper()
		got, err := s.Prune(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range got.Images {
			names = append(names, strings.Join(i.Names, ","))
		}
		return strings.Join(names, " ")
	}
	if got := prune(Prune{Nameless: true}); got != "" {
		t.Errorf("nameless: %q", got)
	}
	if got := prune(Prune{Unused: 24 * time.Hour}); got != "" {
		t.Errorf("a day old: %q", got)
	}
	if got := prune(Prune{Free: 1, Keep: func(i *Image) bool { return i.ID == b.ID }}); got != "docker.io/library/c:latest" {
		t.Errorf("the first of no use: %q", got)
	}
	if _, err := s.Find("c"); !errors.Is(err, ErrNotFound) {
		t.Errorf("c: %v", err)
	}
	if got := read(t, s, a, "base"); len(got) != 4000 {
		t.Error("a common layer went")
	}
	if err := s.Remove("a"); err != nil {
		t.Fatal(err)
	}
	if list, err := s.List(); err != nil || len(list) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if got, err := s.Prune(t.Context(), Prune{Nameless: true}); err != nil || len(got.Images) != 1 || got.Images[0].ID != a.ID {
		t.Errorf("nameless: %+v, %v", got, err)
	}
	if got := prune(Prune{}); got != "docker.io/library/b:latest" {
		t.Errorf("all: %q", got)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if left, err := filepath.Glob(s.path("*", "*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestNormalize has the names that people write, and what they mean.
func TestNormalize(t *testing.T) {
	pinned := "@sha256:" + strings.Repeat("ab", 32)
	for in, want := range map[string]string{
		"busybox": "docker.io/library/busybox:latest", "busybox:1": "docker.io/library/busybox:1",
		"a/b": "docker.io/a/b:latest", "localhost:5000/x:y": "localhost:5000/x:y",
		"ghcr.io/a/b:1" + pinned: "ghcr.io/a/b" + pinned,
	} {
		if got, err := Normalize(in); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", in, got, err, want)
		}
	}
	for _, bad := range []string{"", "UPPER", "a b", "x@sha256:12"} {
		if got, err := Normalize(bad); err == nil {
			t.Errorf("%q is taken as %s", bad, got)
		}
	}
}

// TestLogins has a row for each way in which a key is for an image or not.
func TestLogins(t *testing.T) {
	config := `{"auths":{
		"https://index.docker.io/v1/":{"username":"hub","password":"1"},
		"*.example.org":{"username":"any","password":"2"},
		"ghcr.io/team":{"username":"team","password":"3"},
		"ghcr.io":{"username":"all","password":"4"},
		"empty.io":{}
	}}`
	for image, want := range map[string]string{
		"busybox": "hub", "a.example.org/x": "any", "a.b.example.org/x": "", "ghcr.io/team/app": "team all",
		"ghcr.io/other/app": "all", "quay.io/x": "", "empty.io/x": "",
	} {
		logins, err := Logins([]byte(config), image)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range logins {
			got = append(got, l.Username)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %q", image, got, want)
		}
	}
	old, err := Logins([]byte(`{"ghcr.io":{"auth":"YTpi"}}`), "ghcr.io/x")
	if err != nil || len(old) != 1 || old[0] != (Login{Username: "a", Password: "b"}) {
		t.Errorf("the older file: %+v, %v", old, err)
	}
	for _, bad := range []string{"", "[]", `{"auths":{"ghcr.io":{"auth":"%"}}}`, `{"auths":{"ghcr.io":{"auth":"YQ=="}}}`} {
		if _, err := Logins([]byte(bad), "ghcr.io/x"); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
