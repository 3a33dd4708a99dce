package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"
)

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
