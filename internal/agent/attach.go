package agent

import (
	"context"
	"errors"
	"fmt"
	"io"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"legion.dev/legion/internal/hostapi"
	"legion.dev/legion/internal/hostclient"
	"legion.dev/legion/internal/podspec"
)

// attacher shows what a container writes from now on, and writes to what it
// reads from.
type attacher struct {
	k *kubelet
	target
}

// errLeft ends an attachment whose client has no more input.
var errLeft = errors.New("the client has left")

func (a attacher) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	if in != nil && (a.Console == nil || !a.Console.Stdin) {
		return fmt.Errorf("container %q has no standard input: spec.containers[].stdin is not true; leave --stdin out, or use kubectl exec", container)
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	err := a.attach(ctx, leave, container, in, out, errOut, resize)
	if errors.Is(context.Cause(ctx), errLeft) {
		return nil
	}
	return err
}

func (a attacher) attach(ctx context.Context, leave context.CancelCauseFunc, container string, in io.Reader, out, errOut io.Writer, resize <-chan remotecommand.TerminalSize) error {
	show := func() error { return nil }
	terminal := a.Console != nil && a.Console.Terminal
	if !terminal {
		// Before there is any answer to what is written.
		body, err := a.k.newer(ctx, &a.target, a.Run-1, hostapi.LogQuery{Service: container, Follow: true})
		if err != nil || body == nil {
			return err
		}
		defer func() { _ = body.Close() }()
		show = func() error { return showLog(body, out, errOut) }
	}
	if terminal || in != nil {
		at, err := a.k.host.Attach(ctx, podspec.GroupName(a.UID), hostapi.AttachRequest{Service: container, Stdin: in != nil})
		if err != nil {
			return err
		}
		defer func() { _ = at.Close() }()
		defer context.AfterFunc(ctx, func() { _ = at.Close() })()
		if terminal {
			show = func() error { return at.CopyTo(orNowhere(out)) }
			go resizes(at, resize)
		} else {
			go func() {
				if err := at.CopyTo(io.Discard); err != nil {
					leave(err)
				}
			}()
		}
		go a.write(at, in, leave)
	}
	err := show()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// write passes on the client's input. Its end is that of the container's where
// that is asked for; else it is the client's leave, as with other runtimes.
func (a attacher) write(at *hostclient.Attached, in io.Reader, leave context.CancelCauseFunc) {
	if in == nil {
		return
	}
	_, _ = io.Copy(at, in)
	if a.Console.Once && !a.Console.Terminal {
		_ = at.CloseInput() // the connection may be gone
		return
	}
	leave(errLeft)
}

func resizes(at *hostclient.Attached, resize <-chan remotecommand.TerminalSize) {
	for size := range resize {
		if at.Resize(size.Height, size.Width) != nil {
			return
		}
	}
}

func orNowhere(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// showLog writes what comes to the log, by stream.
func showLog(body io.Reader, out, errOut io.Writer) error {
	var outputs []*logOutput
	for name, w := range map[string]io.Writer{"stdout": out, "stderr": errOut} {
		if w != nil {
			outputs = append(outputs, &logOutput{w: w, stream: name, left: -1})
		}
	}
	return eachLine(body, func() {}, func(line []byte) error {
		for _, o := range outputs {
			if err := o.line(line); err != nil {
				return err
			}
		}
		return nil
	})
}
