package daemonset

import (
	"fmt"
	"strings"
)

// RolledBackKey is the annotation that the controller sets when it rolls a
// DaemonSet back: from which revision, to which, and why. It is not the user's,
// so its prefix is another.
const RolledBackKey = "legion.dev/rolled-back"

// Rolled is a rollback that was made.
type Rolled struct {
	From, To string // hashes of revisions
	Why      string
}

// ParseRolled reads the annotation; what it does not understand is none.
func ParseRolled(value string) Rolled {
	revisions, why, _ := strings.Cut(value, ": ")
	from, to, ok := strings.Cut(revisions, " → ")
	if !ok {
		return Rolled{}
	}
	return Rolled{From: from, To: to, Why: why}
}

// Value is what the annotation holds.
func (r Rolled) Value() string { return fmt.Sprintf("%s → %s: %s", r.From, r.To, r.Why) }

func (r Rolled) String() string {
	return fmt.Sprintf("revision %s was rolled back to %s: %s", r.From, r.To, r.Why)
}

// concerns says whether the revision was part of the rollback. It is not rolled
// back once more then: neither the one that came back, nor the one that failed
// and was asked for again.
func (r Rolled) concerns(hash string) bool { return r.To != "" && (hash == r.From || hash == r.To) }

func (r Rolled) again(hash string) string {
	if !r.concerns(hash) {
		return ""
	}
	return "it was rolled back once, and is not again"
}
