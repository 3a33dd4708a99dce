package promote

import (
	"fmt"
	"strings"

	"legion.dev/legion/internal/unitfile"
)

// silent are the directives of [Unit] and [Service] that a pod does without,
// and nothing is lost.
var silent = map[string]bool{
	"Description": true, "Documentation": true, "SourcePath": true, "DefaultDependencies": true,
	"SyslogIdentifier": true, "SyslogFacility": true, "SyslogLevel": true, "SyslogLevelPrefix": true, "LogLevelMax": true, "LogExtraFields": true,
	"TasksAccounting": true, "MemoryAccounting": true, "CPUAccounting": true, "IOAccounting": true, "BlockIOAccounting": true,
	"TimeoutStopSec": true,
}

// directives sorts the lines of the files: into the annotation, or out.
func (b *builder) directives() error {
	wrong := map[string]string{}
	for _, w := range b.unit.Group.Warnings {
		wrong[place(w.File, w.Line)] = w.Text
	}
	for _, f := range b.unit.Files {
		for _, e := range f.Entries {
			if err := b.directive(e, wrong[place(e.File, e.Line)]); err != nil {
				return err
			}
		}
	}
	return nil
}

func place(file string, line int) string { return fmt.Sprintf("%s:%d", file, line) }

func (b *builder) directive(e unitfile.Entry, wrong string) error {
	out := func(reason string) {
		b.result.LeftOut = append(b.result.LeftOut, fmt.Sprintf("%s=%s: %s", e.Key, e.Value, reason))
	}
	switch {
	case e.Section == "Install", strings.HasPrefix(e.Section, "X-"), silent[e.Key]:
	case strings.HasPrefix(e.Key, "X-") && unitfile.Lookup(e.Section, e.Key) == nil:
	case wrong != "":
		out(strings.TrimPrefix(wrong, e.Key+"= "))
	case e.Section == "Unit":
		out("a pod has no relations to units")
	case e.Section != "Service":
		out("only [Service] is promoted")
	case b.field[e.Key]:
	case e.Key == "TimeoutSec":
		// Its two halves are in TimeoutStartSec= and the grace period.
	case !unitfile.Overlays(e.Key):
		out("neither a pod nor its annotation can say it")
	default:
		value, err := unitfile.ExpandName(b.unit.Group.Name, e.Value)
		if err != nil {
			return err
		}
		line := e.Key + "=" + value
		b.text, b.result.Carried = append(b.text, line), append(b.result.Carried, line)
	}
	return nil
}
