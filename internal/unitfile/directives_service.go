package unitfile

import (
	"fmt"
	"time"

	"legion.dev/legion/internal/service"
)

// serviceRows are the directives of systemd.service(5) and systemd.kill(5).
var serviceRows = []row{
	{names: "Type", set: oneOf(
		svc(func(s *service.Service) *service.Type { return &s.Type }),
		service.Simple, service.Exec, service.Forking, service.Oneshot, service.DBus, service.Notify, service.NotifyReload, service.Idle)},
	{names: "ExecCondition", set: execCondition},
	{names: "ExecStartPre", set: commands(func(s *service.Service) *[]service.Command { return &s.StartPre })},
	{names: "ExecStart", set: commands(func(s *service.Service) *[]service.Command { return &s.Start })},
	{names: "ExecStartPost", set: commands(func(s *service.Service) *[]service.Command { return &s.StartPost })},
	{names: "ExecReload", set: commands(func(s *service.Service) *[]service.Command { return &s.Reload })},
	{names: "ExecStop", set: commands(func(s *service.Service) *[]service.Command { return &s.Stop })},
	{names: "ExecStopPost", set: commands(func(s *service.Service) *[]service.Command { return &s.StopPost })},
	{names: "RestartSec", set: delay(svc(func(s *service.Service) *time.Duration { return &s.Restart.Delay }))},
	{names: "RestartSteps", set: restartSteps},
	{names: "RestartMode", set: oneOf(
		svc(func(s *service.Service) *service.RestartWay { return &s.Restart.Way }),
		service.RestartNormal, service.RestartDirect, service.RestartDebug)},
	{names: "RestartMaxDelaySec", set: span(svc(func(s *service.Service) *time.Duration { return &s.Restart.MaxDelay }))},
	{names: "TimeoutStartSec", set: timeoutStart},
	{names: "TimeoutStopSec", set: timeoutStop},
	{names: "TimeoutAbortSec", set: timeoutAbort},
	{names: "TimeoutSec", set: timeoutBoth},
	{names: "RuntimeMaxSec", set: span(svc(func(s *service.Service) *time.Duration { return &s.RuntimeMax }))},
	{names: "WatchdogSec", set: span(svc(func(s *service.Service) *time.Duration { return &s.Watchdog }))},
	{names: "Restart", set: oneOf(
		svc(func(s *service.Service) *service.RestartMode { return &s.Restart.Mode }),
		service.RestartNo, service.RestartOnSuccess, service.RestartOnFailure, service.RestartOnAbnormal,
		service.RestartOnAbort, service.RestartOnWatchdog, service.RestartAlways)},
	{names: "SuccessExitStatus", set: exits(func(s *service.Service) *service.ExitSet { return &s.SuccessStatus })},
	{names: "RestartPreventExitStatus", set: exits(func(s *service.Service) *service.ExitSet { return &s.Restart.Prevent })},
	{names: "RestartForceExitStatus", set: exits(func(s *service.Service) *service.ExitSet { return &s.Restart.Force })},
	{names: "PIDFile", set: pidFile},
	{names: "GuessMainPID", set: boolean(svc(func(s *service.Service) *bool { return &s.GuessMainPID }))},
	{names: "RemainAfterExit", set: boolean(svc(func(s *service.Service) *bool { return &s.RemainAfterExit }))},
	{names: "NotifyAccess", set: also(oneOf(
		svc(func(s *service.Service) *service.NotifyAccess { return &s.NotifyAccess }),
		service.NotifyNone, service.NotifyMain, service.NotifyExec, service.NotifyAll),
		func(c *compiler) { c.notifySet = true })},
	{names: "BusName", set: text(svc(func(s *service.Service) *string { return &s.BusName }))},
	{names: "FileDescriptorStoreMax", set: fdStoreMax},
	{names: "FileDescriptorStorePreserve", set: fdStorePreserve},
	{names: "StartLimitInterval", set: interval},
	{names: "StartLimitBurst", set: burst},

	{names: "KillMode", set: oneOf(
		svc(func(s *service.Service) *service.KillMode { return &s.Kill.Mode }),
		service.KillControlGroup, service.KillMixed, service.KillProcess, service.KillNone)},
	{names: "KillSignal", set: signal(svc(func(s *service.Service) *int { return &s.Kill.Signal }))},
	{names: "RestartKillSignal", set: signal(svc(func(s *service.Service) *int { return &s.Kill.RestartSignal }))},
	{names: "ReloadSignal", set: signal(svc(func(s *service.Service) *int { return &s.Kill.ReloadSignal }))},
	{names: "FinalKillSignal", set: signal(svc(func(s *service.Service) *int { return &s.Kill.FinalSignal }))},
	{names: "WatchdogSignal", set: signal(svc(func(s *service.Service) *int { return &s.Kill.WatchdogSig }))},
	{names: "SendSIGHUP", set: boolean(svc(func(s *service.Service) *bool { return &s.Kill.SendSIGHUP }))},
	{names: "SendSIGKILL", set: not(svc(func(s *service.Service) *bool { return &s.Kill.NoSIGKILL }))},

	{names: "PermissionsStartOnly", set: boolean(func(c *compiler) *bool { return &c.startOnly })},
	{names: "RootDirectoryStartOnly", reason: "write + before the commands that run outside of the root directory"},
	{names: "Sockets", set: sockets},
	{names: "NonBlocking", set: boolean(svc(func(s *service.Service) *bool { return &s.NonBlocking }))},
	{names: "OpenFile", reason: "no file is opened for the service"},
	{names: "TimeoutStartFailureMode TimeoutStopFailureMode RuntimeRandomizedExtraSec", reason: "the time limit itself is kept, with the default consequence"},
	{names: "ExitType USBFunctionDescriptors USBFunctionStrings RefreshOnReload ExecReloadPost ExtraFileDescriptorNames LiveMount", reason: "the default is used"},
	{names: "SysVStartPriority FsckPassNo BindTo", reason: "systemd dropped it"},
	{names: "OOMPolicy", set: oomPolicy},
}

func restartSteps(c *compiler, e Entry) error {
	n, err := ParseUint(e.Value, 31)
	if err == nil {
		c.svc.Restart.Steps = int(n)
	}
	return err
}

func fdStoreMax(c *compiler, e Entry) error {
	n, err := ParseUint(e.Value, 31)
	if err == nil {
		c.svc.FDStoreMax = int(n)
	}
	return err
}

func fdStorePreserve(c *compiler, e Entry) error {
	if e.Value == "restart" {
		c.svc.FDStorePreserve = e.Value
		return nil
	}
	v, err := ParseBool(e.Value)
	if err == nil {
		c.svc.FDStorePreserve = map[bool]string{true: "yes", false: "no"}[v]
	}
	return err
}

func oomPolicy(_ *compiler, e Entry) error {
	if e.Value != "continue" {
		return fmt.Errorf("%q is not supported; when the kernel kills a process of the unit, the others go on", e.Value)
	}
	return nil
}

// execRows are the directives of systemd.exec(5).
var execRows = []row{
	{names: "User", set: account(exe(func(x *service.ExecContext) *string { return &x.User }))},
	{names: "Group", set: account(exe(func(x *service.ExecContext) *string { return &x.Group }))},
	{names: "SupplementaryGroups", set: list(exe(func(x *service.ExecContext) *[]string { return &x.SupplementaryGroups }))},
	{names: "WorkingDirectory", set: workingDirectory},
	{names: "RootDirectory", set: absolute(exe(func(x *service.ExecContext) *string { return &x.RootDirectory }))},
	{names: "NetworkNamespacePath", set: absolute(exe(func(x *service.ExecContext) *string { return &x.NetworkNamespacePath }))},
	{names: "Environment", set: names(exe(func(x *service.ExecContext) *[]string { return &x.Environment }), assignment)},
	{names: "EnvironmentFile", set: environmentFile},
	{names: "PassEnvironment", set: names(exe(func(x *service.ExecContext) *[]string { return &x.PassEnvironment }), ValidEnvironmentName)},
	{names: "UnsetEnvironment", set: names(exe(func(x *service.ExecContext) *[]string { return &x.UnsetEnvironment }),
		func(s string) bool { return ValidEnvironmentName(s) || assignment(s) })},
	{names: "UMask", set: umask},
	{names: `LimitAS LimitCORE LimitCPU LimitDATA LimitFSIZE LimitLOCKS LimitMEMLOCK LimitMSGQUEUE LimitNICE
		LimitNOFILE LimitNPROC LimitRSS LimitRTPRIO LimitRTTIME LimitSIGPENDING LimitSTACK`, set: rlimit},
	{names: "Nice", set: integer(exe(func(x *service.ExecContext) **int { return &x.Nice }), -20, 19)},
	{names: "OOMScoreAdjust", set: integer(exe(func(x *service.ExecContext) **int { return &x.OOMScoreAdjust }), -1000, 1000)},
	{names: "RuntimeDirectory StateDirectory CacheDirectory LogsDirectory ConfigurationDirectory", set: directories},
	{names: "RuntimeDirectoryMode StateDirectoryMode CacheDirectoryMode LogsDirectoryMode ConfigurationDirectoryMode", set: directoryMode},
	{names: "RuntimeDirectoryPreserve", set: preserve},
	{names: "StandardInput", set: input},
	{names: "StandardInputText", set: inputText},
	{names: "StandardInputData", set: inputData},
	{names: "ExecSearchPath", set: searchPath},
	{names: "StandardOutput", set: output(exe(func(x *service.ExecContext) *string { return &x.StandardOutput }))},
	{names: "StandardError", set: output(exe(func(x *service.ExecContext) *string { return &x.StandardError }))},
	{names: "NoNewPrivileges", set: boolean(exe(func(x *service.ExecContext) *bool { return &x.NoNewPrivileges }))},
	{names: "CapabilityBoundingSet", set: boundingSet},
	{names: "AmbientCapabilities", set: ambient},
	{names: "IgnoreSIGPIPE", set: ignoreSIGPIPE},
	{names: "Delegate", set: delegate},
	// Lines in Legion's log carry the unit's name; there is no other journal
	// for which these would matter.
	{names: "SyslogIdentifier SyslogFacility SyslogLevel SyslogLevelPrefix LogLevelMax LogExtraFields", set: accept},

	{names: "PrivatePIDs PrivateBPF", reason: "the service is in the namespaces of the host"},
	{
		names: `RootImage RootImageOptions RootHash RootHashSignature RootVerity
		RootImagePolicy RootEphemeral MountImages MountImagePolicy ExtensionImages ExtensionImagePolicy ExtensionDirectories MemoryKSM BindLogSockets`,
		reason: "the service sees the host's own file system",
	},
	{names: "IPCNamespacePath", reason: "the service shares the host's IPC unless PrivateIPC=yes"},
	{names: "RestrictFileSystems SystemCallLog", reason: "file systems are not filtered, and no system call is logged"},
	{names: "DynamicUser", set: boolean(exe(func(x *service.ExecContext) *bool { return &x.DynamicUser }))},
	{names: "RemoveIPC SetLoginEnvironment PAMName", reason: "there are no login sessions, and IPC objects stay"},
	{names: "SELinuxContext AppArmorProfile SmackProcessLabel", reason: "the security context is the service manager's"},
	{names: "NUMAPolicy NUMAMask CoredumpFilter CoredumpReceive", reason: "the kernel's default is used"},
	{names: "LogRateLimitIntervalSec LogRateLimitBurst LogFilterPatterns LogNamespace", reason: "all output is kept, bounded by size"},
	{names: "TTYPath TTYReset TTYVHangup TTYVTDisallocate TTYRows TTYColumns UtmpIdentifier UtmpMode", reason: "services have no terminal"},
	{names: "TimeoutCleanSec", reason: "how long the removal by systemctl clean takes is not bounded"},
	{names: "LoadCredential", set: loadCredential},
	{names: "SetCredential", set: setCredential},
	{names: "LoadCredentialEncrypted SetCredentialEncrypted ImportCredential", reason: "credentials are not encrypted, and not imported by pattern"},
}

func preserve(c *compiler, e Entry) error {
	if e.Value == "restart" {
		c.svc.Exec.RuntimePreserve = e.Value
		return nil
	}
	v, err := ParseBool(e.Value)
	if err != nil {
		return err
	}
	c.svc.Exec.RuntimePreserve = map[bool]string{true: "yes", false: "no"}[v]
	return nil
}

func ignoreSIGPIPE(c *compiler, e Entry) error {
	v, err := ParseBool(e.Value)
	if err == nil {
		c.svc.Exec.IgnoreSIGPIPE = &v
	}
	return err
}

// resourceRows are the directives of systemd.resource-control(5).
var resourceRows = []row{
	{names: "MemoryMin DefaultMemoryMin", set: bytesOf(func(r *service.Limits) **service.Amount { return &r.MemoryMin })},
	{names: "MemoryLow DefaultMemoryLow", set: bytesOf(func(r *service.Limits) **service.Amount { return &r.MemoryLow })},
	{names: "MemoryHigh", set: bytesOf(func(r *service.Limits) **service.Amount { return &r.MemoryHigh })},
	{names: "MemoryMax MemoryLimit", set: bytesOf(func(r *service.Limits) **service.Amount { return &r.MemoryMax })},
	{names: "MemorySwapMax", set: bytesOf(func(r *service.Limits) **service.Amount { return &r.MemorySwapMax })},
	{names: "TasksMax", set: tasksMax},
	{names: "CPUQuota", set: cpuQuota},
	{names: "CPUQuotaPeriodSec", set: span(func(c *compiler) *time.Duration { return &resources(c).CPUQuotaPeriod })},
	{names: "CPUWeight", set: cpuWeight},
	{names: "CPUShares", set: weight(2, 262144, 1024, func(r *service.Limits) *uint64 { return &r.CPUWeight })},
	{names: "IOWeight", set: weight(1, 10000, 100, func(r *service.Limits) *uint64 { return &r.IOWeight })},
	{names: "BlockIOWeight", set: weight(10, 1000, 500, func(r *service.Limits) *uint64 { return &r.IOWeight })},
	{names: "AllowedCPUs", set: text(func(c *compiler) *string { return &resources(c).AllowedCPUs })},
	{names: "AllowedMemoryNodes", set: text(func(c *compiler) *string { return &resources(c).AllowedMemoryNodes })},
	// What is used is read from the kernel when somebody asks.
	{names: "TasksAccounting MemoryAccounting CPUAccounting IOAccounting BlockIOAccounting", set: accept},
	{
		names: `StartupCPUWeight StartupCPUShares StartupAllowedCPUs StartupAllowedMemoryNodes StartupIOWeight StartupBlockIOWeight StartupMemoryMax
		StartupMemoryHigh StartupMemoryLow StartupMemorySwapMax StartupMemoryZSwapMax`,
		reason: "what is said for the running system holds from the start",
	},
	{
		names: `IODeviceWeight IOReadBandwidthMax IOWriteBandwidthMax IOReadIOPSMax IOWriteIOPSMax IODeviceLatencyTargetSec BlockIODeviceWeight
		BlockIOReadBandwidth BlockIOWriteBandwidth MemoryZSwapMax MemoryZSwapWriteback`,
		reason: "single devices and compressed swap are not limited",
	},
	{names: "IPAccounting IPAddressAllow IPAddressDeny IPIngressFilterPath IPEgressFilterPath RestrictNetworkInterfaces SocketBindAllow SocketBindDeny BPFProgram NFTSet", reason: "network traffic is not filtered"},
	{names: "DeviceAllow DevicePolicy", reason: "access to devices is not restricted"},
	{names: "Slice DelegateSubgroup DisableControllers", reason: "each unit has a cgroup of its own below legiond's"},
	{names: "ManagedOOMSwap ManagedOOMMemoryPressure ManagedOOMMemoryPressureLimit ManagedOOMMemoryPressureDurationSec ManagedOOMPreference MemoryPressureWatch MemoryPressureThresholdSec", reason: "there is no user-space out-of-memory killer"},
}
