package lean

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Codes of gRPC that this package generates itself.
const (
	internal    = 13
	unavailable = 14
)

// Status is the error of a call that the server finished with a code other than OK.
type Status struct {
	Code    int
	Message string
}

func (s *Status) Error() string { return fmt.Sprintf("code %d: %s", s.Code, s.Message) }

// Call is one call, in progress from Start until OnEnd is called. It may be started again then.
type Call struct {
	// OnMessage gets each message of the server. The memory belongs to the connection and may be used only until
	// OnMessage returns. Without it messages are counted.
	OnMessage func(b []byte)
	// OnEnd is called once, with the call's error.
	OnEnd func(err error)
	// Bytes and Messages count what has arrived since Start.
	Bytes, Messages int

	id          uint32
	window      int64 // send window
	unacked     int
	pending     []byte // what waits for a window, with the prefix
	pendingEnds bool

	prefix [prefixLen]byte
	have   int // of the prefix
	want   int // of the message that is arriving
	got    int
	body   []byte // of it, if it arrives in pieces
}

// Request appends a request to b.
type Request func(b []byte) []byte

// Start begins a call. last means that the client sends nothing after this request. On an error the call has not
// begun.
func (c *Conn) Start(x *Call, method string, request Request, last bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	x.id, x.window, x.unacked, x.Bytes, x.Messages = c.nextID, c.initialWindow, 0, 0, 0
	x.pending, x.pendingEnds, x.have, x.want, x.got, x.body = nil, false, 0, 0, 0, x.body[:0]
	c.nextID += 2
	c.calls[x.id] = x
	block := c.blocks.of(method)
	c.out = append(appendHead(c.out, len(block), frameHeaders, flagEndHeaders, x.id), block...)
	c.send(x, request, last)
	c.flush()
	return nil
}

// Send sends another message of a call that was not started as the last one.
func (c *Conn) Send(x *Call, request Request, last bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if c.calls[x.id] != x {
		return fmt.Errorf("lean: the call has ended")
	}
	c.send(x, request, last)
	c.flush()
	return nil
}

// send encodes a message into the socket's buffer, or, if the windows do not allow that, into the queue that
// waits for them. Must be called with c.mu held.
func (c *Conn) send(x *Call, request Request, last bool) {
	at := len(c.out)
	c.out = append(appendHead(c.out, 0, frameData, 0, x.id), make([]byte, prefixLen)...)
	c.out = request(c.out)
	n := len(c.out) - at - frameHead
	binary.BigEndian.PutUint32(c.out[at+frameHead+1:], uint32(n-prefixLen))
	if n <= frameBytes && int64(n) <= min(x.window, c.window) && len(x.pending) == 0 {
		c.out[at], c.out[at+1], c.out[at+2] = byte(n>>16), byte(n>>8), byte(n)
		if last {
			c.out[at+4] = flagEnd
		}
		x.window -= int64(n)
		c.window -= int64(n)
		return
	}
	waits := len(x.pending) > 0
	x.pending = append(x.pending, c.out[at+frameHead:]...)
	x.pendingEnds = last
	c.out = c.out[:at]
	if !waits && !c.push(x) {
		c.blocked = append(c.blocked, x)
	}
}

// Cancel cancels a call: OnEnd is not called, unless it has been called already or is about to be.
func (c *Conn) Cancel(x *Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[x.id] != x {
		return
	}
	delete(c.calls, x.id)
	if c.err == nil {
		c.out = binary.BigEndian.AppendUint32(appendHead(c.out, 4, frameReset, 0, x.id), codeCancel)
		c.flush()
	}
}

// feed processes the payload of a DATA frame.
func (x *Call) feed(p []byte) {
	for {
		if x.have < prefixLen {
			n := copy(x.prefix[x.have:], p)
			x.have += n
			p = p[n:]
			if x.have < prefixLen {
				return
			}
			x.want, x.got, x.body = int(binary.BigEndian.Uint32(x.prefix[1:])), 0, x.body[:0]
		}
		n := min(len(p), x.want-x.got)
		part := p[:n]
		p = p[n:]
		x.got += n
		x.Bytes += n
		if x.OnMessage != nil && (x.got < x.want || len(x.body) > 0) {
			x.body = append(x.body, part...)
			part = x.body
		}
		if x.got < x.want {
			return
		}
		x.have = 0
		x.Messages++
		if x.OnMessage != nil {
			x.OnMessage(part)
		}
	}
}

func (x *Call) end(err error) {
	if x.OnEnd != nil {
		x.OnEnd(err)
	}
}

// Answer is the result of a call of Do.
type Answer struct {
	Body []byte // of the last message, if requested
	Size int    // of all messages
}

// Do makes a unary call and waits for its end, or for ctx.
func (c *Conn) Do(ctx context.Context, method string, request []byte, keep bool) (Answer, error) {
	var a Answer
	done := make(chan error, 1)
	x := &Call{OnEnd: func(err error) { done <- err }}
	if keep {
		x.OnMessage = func(b []byte) { a.Body = append([]byte(nil), b...) }
	}
	if err := c.Start(x, method, func(b []byte) []byte { return append(b, request...) }, true); err != nil {
		return a, err
	}
	select {
	case err := <-done:
		a.Size = x.Bytes
		return a, err
	case <-ctx.Done():
		c.Cancel(x)
		return Answer{}, ctx.Err()
	}
}
