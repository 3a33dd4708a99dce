package cli

import (
	"context"
	"fmt"
	"strings"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
)

// each asks for something to be done to each of the units that are named.
func (c *systemctl) each(ctx context.Context, client *hostclient.Client, verb string, f func(hostapi.Group) error) error {
	if len(c.args) == 0 {
		return tooFew()
	}
	groups, err := client.Groups(ctx)
	if err != nil {
		return err
	}
	var failures []error
	for _, a := range c.args {
		found := c.meant(ctx, client, groups, a)
		if len(found) == 0 && !strings.ContainsAny(a, "*?[") {
			failures = append(failures, failedTo(fmt.Sprintf("%s unit %s", verb, a), fmt.Errorf("unit file %s not found", a)))
		}
		for _, g := range found {
			if err := f(g); err != nil {
				failures = append(failures, failedTo(fmt.Sprintf("%s unit %s", verb, g.Spec.Name), err))
			}
		}
	}
	return worst(failures)
}

// freezer carries out clean, freeze and thaw.
func (c *systemctl) freezer(ctx context.Context, client *hostclient.Client, verb string) error {
	return c.each(ctx, client, verb, func(g hostapi.Group) error {
		if verb == "clean" {
			return client.Clean(ctx, g.Spec.Name, c.what)
		}
		return client.Freeze(ctx, g.Spec.Name, verb == "freeze")
	})
}
