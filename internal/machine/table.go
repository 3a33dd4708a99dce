package machine

//go:generate go test -run TestDrawing -update .

import "legion.dev/legion/internal/service"

// cell is what one event does in one state.
type cell struct {
	do func(*step)
	// to are the states it may lead to beside the one it is in.
	to []service.State
	// kind tells keep and never from the others, for the drawing.
	kind string
}

// keep: the event is expected here and changes nothing of the state; do may
// note it down.
func keep(do func(*step)) cell { return cell{do: do, kind: "keep"} }

// never: the event cannot come here, because resolve lets only processes of
// the instance pass and this state has none of that sort. It is ignored.
var never = cell{do: ignore, kind: "never"}

func ignore(*step) {}

// goTo leads on: to lists every state in which the step may end.
func goTo(do func(*step), to ...service.State) cell { return cell{do: do, to: to, kind: "go"} }

// Sets of states in which a step may end, named by how they are entered; the
// first of each is where one gets to as a rule. A state without commands or
// processes is passed through, so an entry may end in any of the later ones.
var (
	intoDead = []service.State{
		service.Dead, service.Failed, service.AutoRestart, service.StartPre, service.Start,
		// A oneshot service without start commands runs on through these.
		service.StartPost, service.Exited, service.Stop, service.StopSigterm, service.StopSigkill, service.StopPost, service.FinalSigterm, service.FinalSigkill,
	}
	intoFinal          = with([]service.State{service.FinalSigterm, service.FinalSigkill}, intoDead...)
	intoPost           = with([]service.State{service.StopPost}, intoFinal...)
	intoSignal         = with([]service.State{service.StopSigterm, service.StopSigkill}, intoPost...)
	intoStop           = with([]service.State{service.Stop}, intoSignal...)
	intoRunning        = with([]service.State{service.Running, service.Exited}, intoStop...)
	intoUp             = with([]service.State{service.StartPost}, intoRunning...)
	intoReloadOrSignal = with([]service.State{service.Reload}, intoSignal...)
	intoStart          = with([]service.State{service.Start, service.StartPre}, intoUp...)
)

func with(set []service.State, more ...service.State) []service.State {
	return append(append([]service.State(nil), set...), more...)
}

// States are all states, in the order of a life.
var States = []service.State{
	service.Dead, service.StartPre, service.Start, service.StartPost, service.Running, service.Exited,
	service.Reload, service.Stop, service.StopSigterm, service.StopSigkill, service.StopPost,
	service.FinalSigterm, service.FinalSigkill, service.AutoRestart, service.Failed,
}

// table is total: a test walks every cell. It is filled by init because the
// functions in it read it.
var table map[service.State]*[kinds]cell

func init() {
	table = map[service.State]*[kinds]cell{
		service.Dead: {
			StartAsked:    goTo((*step).askedStart, intoStart...),
			StopAsked:     keep((*step).noteStop),
			RestartAsked:  goTo((*step).askedStart, intoStart...),
			ReloadAsked:   keep((*step).refuseReload),
			ResetAsked:    keep((*step).reset),
			Spawned:       never,
			SpawnFailed:   never,
			MainExited:    never,
			ControlExited: never,
			MainFound:     keep(ignore),
			MainMissing:   keep(ignore),
			Emptied:       keep((*step).cleanUp),
			Notified:      keep(ignore),
			Probed:        keep(ignore),
			BusNamed:      keep(ignore),
			Alarmed:       keep(ignore),
		},
		service.StartPre: {
			StartAsked:    keep(ignore),
			StopAsked:     goTo((*step).askedSignal, intoSignal...),
			RestartAsked:  goTo((*step).askedSignal, intoSignal...),
			ReloadAsked:   keep((*step).refuseReload),
			ResetAsked:    keep((*step).reset),
			Spawned:       keep((*step).spawned),
			SpawnFailed:   goTo((*step).startFailed, intoSignal...),
			MainExited:    never,
			ControlExited: goTo((*step).preExited, intoStart...),
			MainFound:     keep(ignore),
			MainMissing:   keep(ignore),
			Emptied:       keep(ignore),
			Notified:      keep((*step).note),
			Probed:        keep(ignore),
			BusNamed:      keep(ignore),
			Alarmed:       goTo((*step).startLate, intoSignal...),
		},
		service.Start: {
			StartAsked:    keep(ignore),
			StopAsked:     goTo((*step).askedSignal, intoSignal...),
			RestartAsked:  goTo((*step).askedSignal, intoSignal...),
			ReloadAsked:   keep((*step).refuseReload),
			ResetAsked:    keep((*step).reset),
			Spawned:       goTo((*step).startSpawned, intoUp...),
			SpawnFailed:   goTo((*step).startFailed, intoSignal...),
			MainExited:    goTo((*step).startMainExited, intoUp...),
			ControlExited: goTo((*step).startForked, intoUp...),
			MainFound:     goTo((*step).startMainFound, intoUp...),
			MainMissing:   goTo((*step).startMainMissing, intoUp...),
			Emptied:       goTo((*step).startEmptied, intoSignal...),
			Notified:      goTo((*step).startNotified, intoUp...),
			Probed:        keep(ignore),
			BusNamed:      goTo((*step).startNamed, intoUp...),
			Alarmed:       goTo((*step).startLate, intoUp...),
		},
		service.StartPost: {
			StartAsked:    keep(ignore),
			StopAsked:     goTo((*step).askedSignal, intoSignal...),
			RestartAsked:  goTo((*step).askedSignal, intoSignal...),
			ReloadAsked:   keep((*step).refuseReload),
			ResetAsked:    keep((*step).reset),
			Spawned:       keep((*step).spawned),
			SpawnFailed:   goTo((*step).startFailed, intoSignal...),
			MainExited:    goTo((*step).sideMainExited, intoStop...),
			ControlExited: goTo((*step).postExited, intoRunning...),
			MainFound:     keep((*step).mainFound),
			MainMissing:   keep(ignore),
			Emptied:       keep(ignore),
			Notified:      keep((*step).note),
			Probed:        keep(ignore),
			BusNamed:      keep(ignore),
			Alarmed:       goTo((*step).startLate, intoSignal...),
		},
		service.Running: {
			StartAsked:    keep((*step).forgetStop),
			StopAsked:     goTo((*step).askedStop, intoStop...),
			RestartAsked:  goTo((*step).askedStop, intoStop...),
			ReloadAsked:   goTo((*step).askedReload, service.Reload),
			ResetAsked:    keep((*step).reset),
			Spawned:       never,
			SpawnFailed:   never,
			MainExited:    goTo((*step).runningMainExited, with(intoStop, service.Exited)...),
			ControlExited: never,
			MainFound:     keep((*step).mainFound),
			MainMissing:   keep(ignore),
			Emptied:       goTo((*step).runningEmptied, with(intoStop, service.Exited)...),
			Notified:      goTo((*step).runningNotified, intoReloadOrSignal...),
			Probed:        goTo((*step).probed, intoStop...),
			BusNamed:      goTo((*step).runningNamed, intoStop...),
			Alarmed:       goTo((*step).runningAlarm, intoStop...),
		},
		service.Exited: {
			StartAsked:    keep((*step).forgetStop),
			StopAsked:     goTo((*step).askedStop, intoStop...),
			RestartAsked:  goTo((*step).askedStop, intoStop...),
			ReloadAsked:   goTo((*step).askedReload, service.Reload),
			ResetAsked:    keep((*step).reset),
			Spawned:       never,
			SpawnFailed:   never,
			MainExited:    never,
			ControlExited: never,
			MainFound:     keep(ignore),
			MainMissing:   keep(ignore),
			Emptied:       keep(ignore),
			Notified:      keep((*step).note),
			Probed:        keep(ignore),
			BusNamed:      keep(ignore),
			Alarmed:       keep(ignore),
		},
		service.Reload: {
			StartAsked:    keep((*step).forgetStop),
			StopAsked:     goTo((*step).askedSignal, intoSignal...),
			RestartAsked:  goTo((*step).askedSignal, intoSignal...),
			ReloadAsked:   keep(ignore),
			ResetAsked:    keep((*step).reset),
			Spawned:       keep((*step).reloadSpawned),
			SpawnFailed:   goTo((*step).reloadExited, intoRunning...),
			MainExited:    goTo((*step).sideMainExited, intoStop...),
			ControlExited: goTo((*step).reloadExited, intoRunning...),
			MainFound:     keep((*step).mainFound),
			MainMissing:   keep(ignore),
			Emptied:       keep(ignore),
			Notified:      goTo((*step).reloadNotified, intoRunning...),
			Probed:        goTo((*step).probed, intoStop...),
			BusNamed:      keep(ignore),
			Alarmed:       goTo((*step).reloadAlarm, intoRunning...),
		},
		service.Stop: {
			StartAsked:    keep((*step).againLater),
			StopAsked:     keep((*step).stopSooner),
			RestartAsked:  keep((*step).againLater),
			ReloadAsked:   keep((*step).refuseReload),
			ResetAsked:    keep((*step).reset),
			Spawned:       keep((*step).spawned),
			SpawnFailed:   goTo((*step).stopExited, intoSignal...),
			MainExited:    goTo((*step).stopMainExited, intoSignal...),
			ControlExited: goTo((*step).stopExited, intoSignal...),
			MainFound:     keep((*step).mainFound),
			MainMissing:   keep(ignore),
			Emptied:       keep(ignore),
			Notified:      keep((*step).note),
			Probed:        keep(ignore),
			BusNamed:      keep(ignore),
			Alarmed:       goTo((*step).stopLate, intoSignal...),
		},
		service.StopSigterm:  signalRow((*step).termLate),
		service.StopSigkill:  signalRow((*step).killLate),
		service.FinalSigterm: signalRow((*step).termLate),
		service.FinalSigkill: signalRow((*step).killLate),
		service.StopPost: {
			StartAsked:    keep((*step).againLater),
			StopAsked:     keep((*step).stopSooner),
			RestartAsked:  keep((*step).againLater),
			ReloadAsked:   keep((*step).refuseReload),
			ResetAsked:    keep((*step).reset),
			Spawned:       keep((*step).spawned),
			SpawnFailed:   goTo((*step).stopPostExited, intoFinal...),
			MainExited:    keep((*step).mainGone),
			ControlExited: goTo((*step).stopPostExited, intoFinal...),
			MainFound:     keep(ignore),
			MainMissing:   keep(ignore),
			Emptied:       keep(ignore),
			Notified:      keep((*step).note),
			Probed:        keep(ignore),
			BusNamed:      keep(ignore),
			Alarmed:       goTo((*step).stopPostLate, intoFinal...),
		},
		service.AutoRestart: {
			StartAsked:    goTo((*step).askedStart, intoStart...),
			StopAsked:     goTo((*step).giveUp, service.Dead, service.Failed),
			RestartAsked:  goTo((*step).askedStart, intoStart...),
			ReloadAsked:   keep((*step).refuseReload),
			ResetAsked:    keep((*step).reset),
			Spawned:       never,
			SpawnFailed:   never,
			MainExited:    never,
			ControlExited: never,
			MainFound:     keep(ignore),
			MainMissing:   keep(ignore),
			Emptied:       keep(ignore),
			Notified:      keep(ignore),
			Probed:        keep(ignore),
			BusNamed:      keep(ignore),
			Alarmed:       goTo((*step).restartDue, intoStart...),
		},
		service.Failed: {
			StartAsked:    goTo((*step).askedStart, intoStart...),
			StopAsked:     keep((*step).noteStop),
			RestartAsked:  goTo((*step).askedStart, intoStart...),
			ReloadAsked:   keep((*step).refuseReload),
			ResetAsked:    goTo((*step).resetFailed, service.Dead),
			Spawned:       never,
			SpawnFailed:   never,
			MainExited:    never,
			ControlExited: never,
			MainFound:     keep(ignore),
			MainMissing:   keep(ignore),
			Emptied:       keep((*step).cleanUp),
			Notified:      keep(ignore),
			Probed:        keep(ignore),
			BusNamed:      keep(ignore),
			Alarmed:       keep(ignore),
		},
	}
}

// signalRow is the row of the four states that wait for processes to end; they
// differ in what happens when these do not.
func signalRow(late func(*step)) *[kinds]cell {
	return &[kinds]cell{
		StartAsked:    keep((*step).againLater),
		StopAsked:     goTo((*step).signalSooner, intoSignal...),
		RestartAsked:  keep((*step).againLater),
		ReloadAsked:   keep((*step).refuseReload),
		ResetAsked:    keep((*step).reset),
		Spawned:       keep((*step).signalSpawned),
		SpawnFailed:   goTo((*step).signalExited, intoPost...),
		MainExited:    goTo((*step).signalExited, intoPost...),
		ControlExited: goTo((*step).signalExited, intoPost...),
		MainFound:     keep(ignore),
		MainMissing:   keep(ignore),
		Emptied:       goTo((*step).signalExited, intoPost...),
		Notified:      keep((*step).note),
		Probed:        keep(ignore),
		BusNamed:      keep(ignore),
		Alarmed:       goTo(late, intoSignal...),
	}
}
