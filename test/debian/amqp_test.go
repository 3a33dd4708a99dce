package debian

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
)

// The frames and methods of AMQP 0-9-1 (its sections 2.3.5 and 4.2).
const (
	amqpMethod, amqpHeader, amqpBody, amqpEnd = 1, 2, 3, 0xce

	connectionStart, connectionStartOk, connectionTune, connectionTuneOk = 10<<16 | 10, 10<<16 | 11, 10<<16 | 30, 10<<16 | 31
	connectionOpen, connectionOpenOk, connectionClose, connectionCloseOk = 10<<16 | 40, 10<<16 | 41, 10<<16 | 50, 10<<16 | 51
	channelOpen, channelOpenOk, queueDeclare, queueDeclareOk             = 20<<16 | 10, 20<<16 | 11, 50<<16 | 10, 50<<16 | 11
	basicPublish, basicGet, basicGetOk                                   = 60<<16 | 40, 60<<16 | 70, 60<<16 | 71
)

// amqp is one connection with one channel.
type amqp struct {
	in  *bufio.Reader
	out net.Conn
}

// queued asks a broker to take a message into a queue and to hand it out again.
func queued(_ *testing.T, m *machine) error {
	return m.talk("tcp", "127.0.0.1:5672", func(c net.Conn) error {
		a := &amqp{in: bufio.NewReader(c), out: c}
		if err := a.open(); err != nil {
			return err
		}
		got, err := a.passOn("legion")
		if err != nil {
			return err
		}
		if got != "legion" {
			return fmt.Errorf("the queue hands out %q", got)
		}
		_, err = a.ask(0, connectionClose, connectionCloseOk, uint16(200), "", uint32(0))
		return err
	})
}

// open logs in as guest, which the broker allows from its own machine.
func (a *amqp) open() error {
	if _, err := a.out.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	if _, err := a.hear(connectionStart); err != nil {
		return err
	}
	login := "\x00guest\x00guest"
	tune, err := a.ask(0, connectionStartOk, connectionTune, uint32(0), "PLAIN", uint32(len(login)), []byte(login), "en_US")
	if err != nil {
		return err
	}
	if len(tune) < 6 {
		return fmt.Errorf("the broker's tune is %x", tune)
	}
	// Its own limits, and no heartbeats.
	if err := a.say(0, connectionTuneOk, tune[:6], uint16(0)); err != nil {
		return err
	}
	if _, err := a.ask(0, connectionOpen, connectionOpenOk, "/", "", uint8(0)); err != nil {
		return err
	}
	_, err = a.ask(1, channelOpen, channelOpenOk, "")
	return err
}

// passOn publishes a message to a queue and takes one from it.
func (a *amqp) passOn(message string) (string, error) {
	const queue = "daemons"
	if _, err := a.ask(1, queueDeclare, queueDeclareOk, uint16(0), queue, uint8(0), uint32(0)); err != nil {
		return "", err
	}
	if err := a.say(1, basicPublish, uint16(0), "", queue, uint8(0)); err != nil {
		return "", err
	}
	if err := a.frame(amqpHeader, 1, uint16(60), uint16(0), uint64(len(message)), uint16(0)); err != nil {
		return "", err
	}
	if err := a.frame(amqpBody, 1, []byte(message)); err != nil {
		return "", err
	}
	const noAck = uint8(1)
	if _, err := a.ask(1, basicGet, basicGetOk, uint16(0), queue, noAck); err != nil {
		return "", err
	}
	if kind, payload, err := a.next(); err != nil || kind != amqpHeader {
		return "", fmt.Errorf("the message begins with frame %d %x: %v", kind, payload, err)
	}
	kind, body, err := a.next()
	if err == nil && kind != amqpBody {
		err = fmt.Errorf("the message goes on with frame %d %x", kind, body)
	}
	return string(body), err
}

// ask says a method and gives the arguments of the one that must come back.
func (a *amqp) ask(channel uint16, method, answer uint32, args ...any) ([]byte, error) {
	if err := a.say(channel, method, args...); err != nil {
		return nil, err
	}
	return a.hear(answer)
}

func (a *amqp) say(channel uint16, method uint32, args ...any) error {
	return a.frame(amqpMethod, channel, append([]any{method}, args...)...)
}

// frame writes one. A string is a short one, with its length before it.
func (a *amqp) frame(kind uint8, channel uint16, parts ...any) error {
	var payload, out bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			payload.WriteByte(uint8(len(p)))
			payload.WriteString(p)
		default:
			if err := binary.Write(&payload, binary.BigEndian, p); err != nil {
				return err
			}
		}
	}
	for _, p := range []any{kind, channel, uint32(payload.Len()), payload.Bytes(), uint8(amqpEnd)} {
		if err := binary.Write(&out, binary.BigEndian, p); err != nil {
			return err
		}
	}
	_, err := a.out.Write(out.Bytes())
	return err
}

// hear reads the method that must come.
func (a *amqp) hear(method uint32) ([]byte, error) {
	kind, payload, err := a.next()
	if err != nil {
		return nil, err
	}
	if kind != amqpMethod || len(payload) < 4 || binary.BigEndian.Uint32(payload) != method {
		return nil, fmt.Errorf("frame %d %q came, not method %d.%d", kind, payload, method>>16, method&0xffff)
	}
	return payload[4:], nil
}

func (a *amqp) next() (kind uint8, payload []byte, err error) {
	head := make([]byte, 7)
	if _, err := io.ReadFull(a.in, head); err != nil {
		return 0, nil, err
	}
	payload = make([]byte, binary.BigEndian.Uint32(head[3:])+1)
	if _, err := io.ReadFull(a.in, payload); err != nil {
		return 0, nil, err
	}
	last := len(payload) - 1
	if payload[last] != amqpEnd {
		return 0, nil, fmt.Errorf("a frame ends with %x", payload[last])
	}
	return head[0], payload[:last], nil
}
