package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"

	v1 "k8s.io/api/core/v1"

	"legion.dev/legion/internal/image"
	"legion.dev/legion/internal/ocispec"
)

// runtimeState is where the OCI runtime keeps what it knows of its containers;
// it goes with a reboot, as they do.
const runtimeState = "/run/legion/oci"

// findRuntime gives the machine's OCI runtime: the one that is named, or the
// first of runc and crun; nil where there is none, or with "none".
func findRuntime(named string, log *slog.Logger) *ocispec.Runtime {
	if named == "none" {
		return nil
	}
	names := []string{"runc", "crun"}
	if named != "" {
		names = []string{named}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			if path, err = filepath.Abs(path); err == nil {
				return &ocispec.Runtime{Program: path, State: runtimeState}
			}
		}
	}
	log.Info("there is no OCI runtime: pods of images cannot run on this node; install runc and start the agent again", "looked for", names)
	return nil
}

// keeper is the image store as the pods' loop uses it.
type keeper struct {
	store *image.Store
	// slots bounds the pulls at one time.
	slots chan struct{}
}

// pullsAtOnce bounds the pulls under way: more of them share the same network.
const pullsAtOnce = 3

// openImages opens the store, and the runtime's directory.
func openImages(dir string) (*keeper, error) {
	if err := os.MkdirAll(runtimeState, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make the OCI runtime's directory: %w", err)
	}
	store, err := image.OpenHere(dir)
	if err != nil {
		return nil, err
	}
	return &keeper{store: store, slots: make(chan struct{}, pullsAtOnce)}, nil
}

func (k *keeper) Ensure(ctx context.Context, name string, policy v1.PullPolicy, logins []image.Login) (*ocispec.Image, error) {
	if _, err := image.Normalize(name); err != nil {
		return nil, &imageError{invalidImageName, fmt.Errorf("Failed to apply default image tag %q: %w", name, err)} //lint:ignore ST1005 the words are kubelet's
	}
	found, err := k.store.Find(name)
	switch {
	case err == nil && policy != v1.PullAlways:
	case policy == v1.PullNever:
		//lint:ignore ST1005 the words are kubelet's
		return nil, &imageError{errImageNeverPull, fmt.Errorf("Container image %q is not present with pull policy of Never", name)}
	default:
		select {
		case k.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		defer func() { <-k.slots }()
		if found, err = k.store.Pull(ctx, name, logins); err != nil {
			return nil, err
		}
	}
	if err := k.store.Touch(found.ID); err != nil {
		return nil, err
	}
	return k.show(found), nil
}

// show is an image in the terms of running it.
func (k *keeper) show(i *image.Image) *ocispec.Image {
	out := &ocispec.Image{
		ID: i.ID, Ref: i.ID, Layers: k.store.Layers(i), Copied: k.store.Flat(),
		Entrypoint: i.Config.Entrypoint, Cmd: i.Config.Cmd, Env: i.Config.Env, User: i.Config.User,
		WorkingDir: i.Config.WorkingDir, StopSignal: i.Config.StopSignal, Passwd: i.Passwd, Group: i.Group,
	}
	if len(i.Digests) > 0 {
		out.Ref = i.Digests[0]
	}
	return out
}
