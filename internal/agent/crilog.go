package agent

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// logOutput turns lines of the CRI log format into what the kubelet answers.
type logOutput struct {
	w io.Writer
	// timestamps puts each line's time in front.
	timestamps bool
	// stream is "stdout" or "stderr"; empty is both.
	stream string
	// left is how many bytes may still be written; negative is no limit.
	left int64

	// midLine: what was written last did not end its line.
	midLine bool
}

// errLimit ends a copy at the limit.
var errLimit = errors.New("limit reached")

// copyFrom writes all of r's lines, flushing whenever no more are at hand.
func (o *logOutput) copyFrom(r io.Reader, flush func()) error {
	err := eachLine(r, flush, o.line)
	if errors.Is(err, errLimit) {
		flush()
		return nil
	}
	return err
}

// eachLine gives each of r's lines to take until the end or an error, and calls
// idle whenever no more are at hand.
func eachLine(r io.Reader, idle func(), take func(line []byte) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			whole := bytes.Clone(line)
			line, err = in.ReadSlice('\n')
			line = append(whole, line...)
		}
		if len(line) > 0 {
			if err := take(line); err != nil {
				return err
			}
		}
		if in.Buffered() == 0 {
			idle()
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// line writes one line "TIME STREAM F|P TEXT"; P is a part of a line that goes
// on. What is not of this form is written as it is.
func (o *logOutput) line(line []byte) error {
	line = bytes.TrimSuffix(line, []byte("\n"))
	stamp, rest, ok1 := bytes.Cut(line, []byte(" "))
	stream, rest, ok2 := bytes.Cut(rest, []byte(" "))
	tag, text, ok3 := bytes.Cut(rest, []byte(" "))
	if ok2 && !ok3 {
		// An empty line may have lost the blank before its text.
		ok3 = true
	}
	whole := true
	switch {
	case !ok1 || !ok2 || !ok3 || (string(stream) != "stdout" && string(stream) != "stderr"):
		stamp, text = nil, line
	case o.stream != "" && o.stream != string(stream):
		return nil
	default:
		kind, _, _ := bytes.Cut(tag, []byte(":"))
		whole = string(kind) != "P"
	}
	if o.timestamps && !o.midLine && len(stamp) > 0 {
		if err := o.write(append(bytes.Clone(stamp), ' ')); err != nil {
			return err
		}
	}
	o.midLine = !whole
	if err := o.write(text); err != nil || !whole {
		return err
	}
	return o.write([]byte{'\n'})
}

func (o *logOutput) write(p []byte) error {
	over := o.left >= 0 && int64(len(p)) >= o.left
	if over {
		p = p[:o.left]
	}
	n, err := o.w.Write(p)
	if o.left >= 0 {
		o.left -= int64(n)
	}
	if err == nil && over {
		return errLimit
	}
	return err
}
