package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"legion.dev/legion/internal/image"
)

func imageCommand(s *session) *cobra.Command {
	dir := ""
	c := &cobra.Command{Use: "image", Short: "List, pull, import and remove the images that pods of this host are run from", Args: noArgs}
	c.PersistentFlags().StringVar(&dir, "dir", "", "the image store (default $LEGION_DIR/images, then /var/lib/legion/images)")
	open := func() (*image.Store, error) { return s.images(dir) }
	c.AddCommand(imageListCommand(s, open), imagePullCommand(s, open), imageImportCommand(s, open), imagePrefetchCommand(s), imagePruneCommand(s, open))
	return c
}

// images opens the store; where overlayfs cannot be used, as one of copies.
func (s *session) images(dir string) (*image.Store, error) {
	if dir == "" {
		dir = filepath.Join("/var/lib/legion", "images")
		if own := s.Getenv("LEGION_DIR"); own != "" {
			dir = filepath.Join(own, "images")
		}
	}
	return image.OpenHere(dir)
}

func imageListCommand(s *session, open func() (*image.Store, error)) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the images of the store, the newest first", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			asJSON, err := s.json()
			if err != nil {
				return err
			}
			store, err := open()
			if err != nil {
				return err
			}
			list, err := store.List()
			if err != nil {
				return err
			}
			if asJSON {
				return s.printJSON(list)
			}
			w := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tID\tSIZE\tADDED\tUSED")
			now := time.Now()
			for i := range list {
				img := &list[i]
				used := "never"
				if !img.Used.IsZero() {
					used = ago(now, img.Used)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", nameOf(img), shortID(img.ID), size(img.Size()), ago(now, img.Added), used)
			}
			return w.Flush()
		},
	}
}

func imagePullCommand(s *session, open func() (*image.Store, error)) *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use: "pull [-f FILE]… [IMAGE…]", Short: "Get images from their registries, with the logins of the docker config",
		Long: "Get images from their registries, with the logins of the docker config: those named, and those\n" +
			"of every container in the manifests of -f (- is standard input). One that cannot be had keeps\n" +
			"none of the others back. Exit status: 0 all are here, 1 one is not.",
		RunE: func(c *cobra.Command, names []string) error {
			for _, file := range files {
				more, err := s.imagesOfManifest(file)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				names = append(names, more...)
			}
			if err := someImages(c, names); err != nil {
				return err
			}
			store, err := open()
			if err != nil {
				return err
			}
			slices.Sort(names)
			return s.pull(c.Context(), store, slices.Compact(names))
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "a `file` of manifests")
	return c
}

func (s *session) pull(ctx context.Context, store *image.Store, names []string) error {
	failed := false
	for _, name := range names {
		logins, err := image.UserLogins(name)
		var img *image.Image
		if err == nil {
			img, err = store.Pull(ctx, name, logins)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			failed = true
			fmt.Fprintln(s.Err, s.paint(red, "error: ")+err.Error())
			continue
		}
		fmt.Fprintf(s.Out, "%s %s\n", name, shortID(img.ID))
	}
	if failed {
		return &Exit{Status: exitFailure}
	}
	return nil
}

func imagePrefetchCommand(s *session) *cobra.Command {
	return &cobra.Command{
		Use:                "prefetch [--dir DIR] IMAGE… | ds/NAME… | -f FILE",
		Short:              "Have the nodes of the fleet get images ahead of a rollout",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			return runServer(s, "image", append([]string{"prefetch"}, args...))
		},
	}
}

func imageImportCommand(s *session, open func() (*image.Store, error)) *cobra.Command {
	name := ""
	c := &cobra.Command{
		Use: "import FILE…", Short: "Take images from archives of docker save or of the OCI's layout (- is standard input)", Args: someImages,
		RunE: func(c *cobra.Command, args []string) error {
			store, err := open()
			if err != nil {
				return err
			}
			for _, file := range args {
				if err := s.importImage(c.Context(), store, file, name); err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&name, "name", "", "the name for the archive's image, in place of its own")
	return c
}

func (s *session) importImage(ctx context.Context, store *image.Store, file, name string) error {
	var in io.Reader = s.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	list, err := store.Import(ctx, in, name)
	for _, img := range list {
		fmt.Fprintf(s.Out, "%s %s\n", nameOf(img), shortID(img.ID))
	}
	return err
}

func imagePruneCommand(s *session, open func() (*image.Store, error)) *cobra.Command {
	p := image.Prune{}
	all := false
	c := &cobra.Command{
		Use: "prune", Short: "Remove images that nothing uses: those without a name, with --all the others, too", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := open()
			if err != nil {
				return err
			}
			if p.Keep, err = s.imagesInUse(c.Context()); err != nil {
				return err
			}
			p.Nameless = !all
			gone, err := store.Prune(c.Context(), p)
			for i := range gone.Images {
				fmt.Fprintf(s.Out, "removed %s %s\n", nameOf(&gone.Images[i]), shortID(gone.Images[i].ID))
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(s.Out, "%d images removed, %s freed\n", len(gone.Images), size(gone.Bytes))
			return nil
		},
	}
	c.Flags().BoolVar(&all, "all", false, "also those with a name")
	c.Flags().DurationVar(&p.Unused, "unused", 0, "only those of which there was no use for so long")
	return c
}

// imagesInUse says which images the host's groups are run from. Without a socket
// there is no host.
func (s *session) imagesInUse(ctx context.Context) (func(*image.Image) bool, error) {
	if _, err := os.Stat(s.socketPath()); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	c := s.client()
	defer c.Close()
	groups, err := c.Groups(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot tell which images are in use: %w", explained(err))
	}
	used := map[string]bool{}
	for _, g := range groups {
		for _, id := range g.Spec.Images() {
			used[id] = true
		}
	}
	return func(i *image.Image) bool { return used[i.ID] }, nil
}

func someImages(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return &Exit{exitUsage, errors.New("nothing is named: " + c.UseLine())}
	}
	return nil
}

func nameOf(i *image.Image) string {
	if len(i.Names) == 0 {
		return "<none>"
	}
	return strings.Join(i.Names, ",")
}

// shortID is as much of an ID as people copy.
func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(len(id), 12)]
}

// size is a number of bytes for people.
func size(n int64) string {
	units, f := []string{"B", "KiB", "MiB", "GiB"}, float64(n)
	for f >= 1024 && len(units) > 1 {
		f, units = f/1024, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f%s", f, units[0])
}
