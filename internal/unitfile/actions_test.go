package unitfile

import (
	"reflect"
	"strings"
	"testing"

	"legion.dev/legion/internal/service"
)

func TestActionDirectives(t *testing.T) {
	g, err := compile(t, "a.service", `[Unit]
FailureAction=poweroff-force
FailureActionExitStatus=256
SuccessAction=exit
SuccessActionExitStatus=17
JobTimeoutAction=halt
JobTimeoutRebootArgument=of %n
OnFailureIsolate=yes
OnSuccessJobMode=flush
AllowIsolate=yes
IgnoreOnIsolate=yes
[Service]
ExecStart=/bin/a
StartLimitAction=kexec
FailureAction=reboot-immediate
RebootArgument=x
`)
	if err != nil {
		t.Fatal(err)
	}
	status := 17
	want := service.Actions{
		Failure: service.RebootImmediate, Success: service.ExitAction, JobTimeout: service.Halt, SuccessStatus: &status,
		RebootArgument: "x", JobTimeoutArgument: "of a.service",
	}
	if !reflect.DeepEqual(g.Actions, want) || g.OnFailureMode != service.JobIsolate || g.OnSuccessMode != service.JobFlush || !g.AllowIsolate || !g.IgnoreOnIsolate {
		t.Errorf("%+v", g)
	}
	var said []string
	for _, w := range g.Warnings {
		said = append(said, w.Text)
	}
	if text := strings.Join(said, "; "); len(said) != 2 || !strings.Contains(text, "256 is not from 0 to 255") || !strings.Contains(text, "cannot do kexec") {
		t.Errorf("warnings: %s", text)
	}
}
