// Package promote turns a unit of one host into the DaemonSet that runs it on
// every host of a fleet. What a pod has a field for goes there; what it has
// none for goes, as directives, into an annotation that the agent lays over the
// container; what has a meaning in neither is listed. It is pure, and links
// nothing of Kubernetes: the object is made of maps.
package promote

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"legion.dev/legion/internal/service"
	"legion.dev/legion/internal/unitfile"
)

// Annotation, with the container's name behind it, holds the directives
// (podspec.UnitAnnotation).
const Annotation = "unit.legion.dev/"

// Unit is what is promoted.
type Unit struct {
	// Group is what the files compile to.
	Group service.Group
	// Files are the fragment and its drop-ins, in the order they apply.
	Files []*unitfile.File
}

// Account is what is known of a user.
type Account struct {
	Name     string
	UID, GID int64
	// Groups are those that the user is in beside GID.
	Groups []int64
	Home   string
}

// Options is what the person wants otherwise. Zero is a sensible DaemonSet.
type Options struct {
	Namespace string
	// Name of the DaemonSet and its container; empty is made of the unit's.
	Name string
	// Image is a word for people: runtime "host" does not read it.
	Image string
	// Label is the selector's key and value; empty is app.kubernetes.io/name.
	Label [2]string
	// User and Group look accounts up on this host.
	User  func(name string) (Account, error)
	Group func(name string) (int64, error)
}

// Result is the DaemonSet and what there is to say about it.
type Result struct {
	Object map[string]any
	// Carried are the directives in the annotation, LeftOut those with a
	// meaning in neither, with the reason; Changed is what becomes different.
	Carried, LeftOut, Changed []string
}

type object = map[string]any

var (
	label    = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	notLabel = regexp.MustCompile(`[^a-z0-9]+`)
)

const longestLabel = 63

// DaemonSet makes it. The error says why the unit cannot be one.
func DaemonSet(u Unit, o Options) (Result, error) {
	if len(u.Group.Services) != 1 {
		return Result{}, fmt.Errorf("%s is no service: name the service that it starts", u.Group.Name)
	}
	if o.Name == "" {
		o.Name = nameOf(u.Group.Name)
	}
	if !label.MatchString(o.Name) || len(o.Name) > longestLabel {
		return Result{}, fmt.Errorf("%q cannot be the name of a container: give --name up to %d lower-case letters, digits and -", o.Name, longestLabel)
	}
	if o.Image == "" {
		o.Image = "host"
	}
	if o.Label[0] == "" {
		o.Label = [2]string{"app.kubernetes.io/name", o.Name}
	}
	b := &builder{unit: u, opts: o, svc: u.Group.Services[0], container: object{"name": o.Name, "image": o.Image}, field: map[string]bool{}}
	if err := b.build(); err != nil {
		return Result{}, fmt.Errorf("cannot promote %s: %w", u.Group.Name, err)
	}
	b.result.Object = b.daemonSet()
	return b.result, nil
}

func nameOf(unit string) string {
	name := notLabel.ReplaceAllString(strings.ToLower(strings.TrimSuffix(unit, ".service")), "-")
	name = strings.Trim(name, "-")
	return strings.TrimRight(name[:min(len(name), longestLabel)], "-")
}

// builder carries one promotion.
type builder struct {
	unit      Unit
	opts      Options
	svc       service.Service
	container object
	security  object
	pod       object // securityContext of the pod
	volumes   []any
	mounts    []any
	env       []any
	// field marks the directives that have become fields.
	field  map[string]bool
	text   []string
	result Result
}

func (b *builder) build() error {
	s := &b.svc
	switch {
	case s.Type == service.Oneshot:
		return errors.New("a service of Type=oneshot comes to its end, and a DaemonSet's pods do not: promote a daemon")
	case s.Exec.DynamicUser:
		return errors.New("with DynamicUser=yes there is no user that a pod could name: set User= to one that is on every node, in a drop-in")
	}
	if err := b.users(); err != nil {
		return err
	}
	b.capabilities()
	b.command()
	b.limits()
	b.environment()
	b.directories()
	b.probe("Readiness", s.Readiness)
	b.probe("Liveness", s.Liveness)
	b.times()
	if err := b.directives(); err != nil {
		return err
	}
	return b.check()
}

// check lays the directives over a stand-in, as the agent will.
func (b *builder) check() error {
	text := "[Service]\n" + strings.Join(b.text, "\n")
	f, err := unitfile.Parse("annotation "+Annotation+b.opts.Name, []byte(text))
	if err != nil {
		return err
	}
	stand := service.Service{Name: b.opts.Name, Type: service.Exec, Restart: service.Restart{Mode: service.RestartAlways}}
	if b.container["command"] != nil {
		stand.Start = b.svc.Start
	}
	_, err = unitfile.Overlay(stand, f, unitfile.Options{Root: true})
	return err
}

// times are the stop's limit and the restarts.
func (b *builder) times() {
	switch b.svc.Restart.Mode {
	case service.RestartAlways:
		b.field["Restart"] = true
	case service.RestartNo:
		b.field["Restart"] = true
		b.result.Changed = append(b.result.Changed, "Restart=no becomes restartPolicy Always, the only one of DaemonSets")
	}
	switch b.svc.Type {
	case service.Notify, service.NotifyReload, service.Forking, service.DBus:
		b.text = append(b.text, "Type="+string(b.svc.Type), "TimeoutStartSec="+seconds(b.svc.TimeoutStart))
		b.result.Carried = append(b.result.Carried, b.text...)
		b.field["TimeoutStartSec"] = true
	}
	b.field["Type"] = true
}

func seconds(d time.Duration) string {
	if d == 0 {
		return "infinity"
	}
	return fmt.Sprintf("%dus", d.Microseconds())
}

// longestGrace stands for TimeoutStopSec=infinity: a week.
const longestGrace = 7 * 24 * 60 * 60

func (b *builder) daemonSet() object {
	labels := object{b.opts.Label[0]: b.opts.Label[1]}
	grace := int64((b.svc.TimeoutStop + time.Second - 1) / time.Second)
	if b.svc.TimeoutStop == 0 {
		grace = longestGrace
		b.result.Changed = append(b.result.Changed, "TimeoutStopSec=infinity becomes a week")
	}
	for field, list := range map[string][]any{"env": b.env, "volumeMounts": b.mounts} {
		if len(list) > 0 {
			b.container[field] = list
		}
	}
	if len(b.security) > 0 {
		b.container["securityContext"] = b.security
	}
	spec := object{
		"runtimeClassName": "host",
		// A process of the host has the host's network in any case.
		"hostNetwork":                   true,
		"automountServiceAccountToken":  false,
		"terminationGracePeriodSeconds": grace,
		// A host's daemon belongs on hosts that take no other pods, too.
		"tolerations": []any{
			object{"key": "legion.dev/host", "operator": "Exists", "effect": "NoSchedule"},
			object{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"},
		},
		"containers": []any{b.container},
	}
	if len(b.pod) > 0 {
		spec["securityContext"] = b.pod
	}
	if len(b.volumes) > 0 {
		spec["volumes"] = b.volumes
	}
	template := object{"labels": labels}
	if len(b.text) > 0 {
		template["annotations"] = object{Annotation + b.opts.Name: strings.Join(b.text, "\n") + "\n"}
	}
	meta := object{"name": b.opts.Name, "labels": labels}
	if b.opts.Namespace != "" {
		meta["namespace"] = b.opts.Namespace
	}
	if d := b.unit.Group.Description; d != "" {
		meta["annotations"] = object{"kubernetes.io/description": d}
	}
	return object{
		"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta,
		"spec": object{
			"selector": object{"matchLabels": labels},
			"template": object{"metadata": template, "spec": spec},
		},
	}
}
