package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"legion.dev/legion/internal/image"
)

// stock imports an image whose only layer holds size bytes.
func stock(t *testing.T, store *image.Store, at string, size int) *image.Image {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: at, Typeflag: tar.TypeReg, Size: int64(size), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("docker.io/library/" + at + ":1")
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := tarball.Write(tag, img, &packed); err != nil {
		t.Fatal(err)
	}
	list, err := store.Import(t.Context(), &packed, "")
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

// TestCollector: nothing goes while the disk has room; from 85 % on the images
// of no use for longest go until it is 80 %, those in use and the youngest
// never; with an age the older go in any case.
func TestCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := image.Open(t.TempDir(), image.Options{Flat: true})
		if err != nil {
			t.Fatal(err)
		}
		const size = 100_000
		inUse := int64(50_000)
		c := collector{
			store: store, log: slog.New(slog.NewTextHandler(io.Discard, nil)),
			disk: func(string) (int64, int64, error) { return size, inUse, nil },
		}
		busy := stock(t, store, "busy", 4000)
		c.used = func(context.Context) (map[string]bool, bool) { return map[string]bool{busy.ID: true}, true }
		for n := range 4 {
			time.Sleep(time.Hour)
			stock(t, store, fmt.Sprintf("app-%d", n), 4000)
		}
		left := func() string {
			t.Helper()
			if err := c.collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			list, err := store.List()
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for i := range list {
				names = append(names, strings.TrimSuffix(strings.TrimPrefix(list[i].Names[0], "docker.io/library/"), ":1"))
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		}
		steps := []struct {
			inUse int64
			age   time.Duration
			wait  time.Duration
			want  string
		}{
			{84_000, 0, 0, "app-0 app-1 app-2 app-3 busy"},
			{86_000, 0, 0, "app-2 app-3 busy"}, // 6,000 bytes are two images
			{99_000, 0, 0, "app-3 busy"},       // app-3 is not two minutes old
			{10_000, 2 * time.Hour, time.Hour, "app-3 busy"},
			{10_000, 2 * time.Hour, time.Hour, "busy"},
		}
		for _, s := range steps {
			time.Sleep(s.wait)
			inUse, c.age = s.inUse, s.age
			if got := left(); got != s.want {
				t.Errorf("%+v: left is %s", s, got)
			}
		}
		c.used = func(context.Context) (map[string]bool, bool) { return nil, false }
		inUse = 99_000
		if got := left(); got != "busy" {
			t.Errorf("while it is not known what is in use: %s", got)
		}
	})
}
