package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"legion.dev/legion/internal/image"
)

func imagePrefetchCommand(s *session, open func() (*image.Store, error)) *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use:   "prefetch [-f FILE]… [IMAGE…]",
		Short: "Get images ahead of a rollout: those named, and those of the manifests",
		Long: "Get the images that this host does not have yet, so that an update finds them here: those\n" +
			"named, and those of every container in the manifests of -f (- is standard input).\n" +
			"One that cannot be had keeps none of the others back. Exit status: 0 all are here, 1 one is not.",
		RunE: func(c *cobra.Command, args []string) error {
			names := args
			for _, file := range files {
				more, err := s.imagesOfManifest(file)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				names = append(names, more...)
			}
			if len(names) == 0 {
				return &Exit{exitUsage, errors.New("no image is named: " + c.UseLine())}
			}
			store, err := open()
			if err != nil {
				return err
			}
			return s.prefetch(c.Context(), store, names)
		},
	}
	c.Flags().StringArrayVarP(&files, "filename", "f", nil, "a `file` of manifests")
	return c
}

func (s *session) prefetch(ctx context.Context, store *image.Store, names []string) error {
	failed := false
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if img, err := store.Find(name); err == nil {
			fmt.Fprintf(s.Out, "%s %s is here\n", name, shortID(img.ID))
			continue
		}
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

// imagesOfManifest finds the image of each container in a file of manifests,
// whatever the kind around it.
func (s *session) imagesOfManifest(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if file == "-" {
		text, err = io.ReadAll(s.In)
	}
	if err != nil {
		return nil, err
	}
	var out []string
	for d := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var doc any
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the manifests: %w", err)
		}
		out = containerImages(doc, out)
	}
}

// containerImages walks a document: a list of containers is known by its name.
func containerImages(v any, out []string) []string {
	switch v := v.(type) {
	case []any:
		for _, one := range v {
			out = containerImages(one, out)
		}
	case map[string]any:
		for name, value := range v {
			list, ok := value.([]any)
			if !ok || (name != "containers" && name != "initContainers") {
				out = containerImages(value, out)
				continue
			}
			for _, one := range list {
				if c, ok := one.(map[string]any); ok {
					if image, ok := c["image"].(string); ok && image != "" {
						out = append(out, image)
					}
				}
			}
		}
	}
	return out
}
