package unitfile

import (
	"encoding/json"
	"testing"
)

// TestSandboxDirectives compiles one line, or some, and compares what it says.
func TestSandboxDirectives(t *testing.T) {
	for _, test := range []struct{ lines, exec, resources string }{
		{"PrivateTmp=no", `{}`, ""},
		{"ProtectSystem=true\nProtectHome=read-only", `{"sandbox":{"protectSystem":"yes","protectHome":"read-only"}}`, ""},
		{"ReadWritePaths=-/a/ +/b\nReadWritePaths=/c", `{"sandbox":{"readWritePaths":["-/a","+/b","/c"]}}`, ""},
		{"ReadWritePaths=/a\nReadWritePaths=\nReadWritePaths=/c", `{"sandbox":{"readWritePaths":["/c"]}}`, ""},
		{"BindPaths=/a:/b:norbind -/c\nBindReadOnlyPaths=/d", `{"sandbox":{"binds":[{"source":"/a","target":"/b","shallow":true},{"source":"/c","target":"/c","optional":true},{"source":"/d","target":"/d","readOnly":true}]}}`, ""},
		{"RestrictNamespaces=yes", `{"sandbox":{"restrictNamespaces":[]}}`, ""},
		{"RestrictNamespaces=~user mnt", `{"sandbox":{"restrictNamespaces":["cgroup","ipc","net","pid","uts"]}}`, ""},
		{"RestrictNamespaces=net\nRestrictNamespaces=uts", `{"sandbox":{"restrictNamespaces":["net","uts"]}}`, ""},
		{"RestrictAddressFamilies=AF_UNIX AF_INET\nRestrictAddressFamilies=~AF_INET", `{"sandbox":{"restrictAddressFamilies":["AF_UNIX"]}}`, ""},
		{"RestrictAddressFamilies=~AF_PACKET", `{"sandbox":{"restrictAddressFamilies":["AF_PACKET"],"familiesDenied":true}}`, ""},
		{"SystemCallFilter=@system-service\nSystemCallFilter=~@resources", `{"sandbox":{"systemCallFilter":["@system-service","~@resources"]}}`, ""},
		{"PrivateUsers=yes", `{"sandbox":{"privateUsers":"self"}}`, ""},
		{"PrivateUsers=self\nPrivateUsers=no", `{}`, ""},
		{"PrivateUsers=identity", `{"sandbox":{"privateUsers":"identity"}}`, ""},
		{"ProtectProc=default\nProcSubset=pid", `{"sandbox":{"procSubset":"pid"}}`, ""},
		{"DynamicUser=yes\nProtectSystem=full", `{"noNewPrivileges":true,"dynamicUser":true,"sandbox":{"privateTmp":true,"protectSystem":"full","protectHome":"read-only","restrictSUIDSGID":true}}`, ""},
		{"LoadCredential=a:/x//y\nLoadCredential=b\nSetCredential=a:1\\n2", `{"credentials":[{"name":"a","source":"/x/y"},{"name":"b","source":"b"},{"name":"a","data":"MQoy"}]}`, ""},
		{"CPUAffinity=0 2-3,5\nCPUSchedulingPolicy=rr\nCPUSchedulingPriority=5\nIOSchedulingClass=3\nTimerSlackNSec=1us", `{"scheduling":{"policy":"rr","priority":5,"affinity":[0,2,3,5],"ioClass":"idle","timerSlack":1000}}`, ""},
		{"MemoryMax=1G\nMemoryHigh=12.5%\nTasksMax=infinity\nCPUQuota=150%\nCPUShares=512", `{}`, `{"memoryHigh":{"share":1250},"memoryMax":{"value":1073741824},"tasksMax":{"value":18446744073709551615},"cpuQuota":15000,"cpuWeight":50}`},
		{"CPUWeight=idle\nAllowedCPUs=0-1", `{}`, `{"cpuIdle":true,"allowedCPUs":"0-1"}`},
	} {
		f, err := Parse("/u/d.service", []byte("[Service]\nExecStart=/bin/true\n"+test.lines+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		g, err := Compile("d.service", f, nil, Options{})
		if err != nil || len(g.Warnings) > 0 {
			t.Errorf("%q: %v %v", test.lines, err, g.Warnings)
			continue
		}
		exec, err := json.Marshal(g.Services[0].Exec)
		if err != nil || string(exec) != test.exec {
			t.Errorf("%q:\n%s, want\n%s", test.lines, exec, test.exec)
		}
		if r := g.Services[0].Resources; r != nil || test.resources != "" {
			if text, err := json.Marshal(r); err != nil || string(text) != test.resources {
				t.Errorf("%q:\n%s, want\n%s", test.lines, text, test.resources)
			}
		}
	}
	for _, wrong := range []string{
		"ProtectSystem=perhaps", "PrivateUsers=perhaps", "ReadOnlyPaths=relative", "BindPaths=a:/b", "RestrictNamespaces=time-travel", "RestrictAddressFamilies=INET", "LoadCredential=a/b:/x",
		"SetCredential=a", "CPUAffinity=3-1", "CPUSchedulingPriority=100", "MemoryMax=101%", "TasksMax=0", "CPUQuota=10", "IOWeight=0",
	} {
		f, err := Parse("/u/d.service", []byte("[Service]\nExecStart=/bin/true\n"+wrong+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if g, err := Compile("d.service", f, nil, Options{}); err != nil || len(g.Warnings) != 1 {
			t.Errorf("%q: %v %v", wrong, err, g.Warnings)
		}
	}
}
