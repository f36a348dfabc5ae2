package h2

import (
	"context"
	"encoding/binary"
	"errors"
	"reflect"

	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func sameMap(a, b metadata.MD) bool {
	return reflect.ValueOf(a).UnsafePointer() == reflect.ValueOf(b).UnsafePointer()
}

// sender is a cursor over a message and its prefix.
type sender struct {
	prefix []byte
	msg    mem.BufferSlice
	left   int
	at     int // offset in msg[0]
}

func newSender(prefix []byte, msg mem.BufferSlice) sender {
	return sender{prefix: prefix, msg: msg, left: len(prefix) + msg.Len()}
}

// appendTo appends the next n bytes; n must not exceed p.left.
func (p *sender) appendTo(b []byte, n int) []byte {
	p.left -= n
	k := min(n, len(p.prefix))
	b = append(b, p.prefix[:k]...)
	p.prefix = p.prefix[k:]
	n -= k
	for n > 0 {
		part := p.msg[0].ReadOnlyData()[p.at:]
		k := min(n, len(part))
		b = append(b, part[:k]...)
		if n -= k; k == len(part) {
			p.msg, p.at = p.msg[1:], 0
		} else {
			p.at += k
		}
	}
	return b
}

// part takes the next bytes, at most n of them and no more than lie in one place.
func (p *sender) part(n int) []byte {
	if len(p.prefix) > 0 {
		n = min(n, len(p.prefix))
		part := p.prefix[:n]
		p.prefix, p.left = p.prefix[n:], p.left-n
		return part
	}
	part := p.msg[0].ReadOnlyData()[p.at:]
	if n < len(part) {
		part = part[:n]
		p.at += n
	} else {
		p.msg, p.at = p.msg[1:], 0
	}
	p.left -= len(part)
	return part
}

// adjacent is the number of bytes that part can take.
func (p *sender) adjacent() int {
	if len(p.prefix) > 0 {
		return len(p.prefix)
	}
	return p.msg[0].Len() - p.at
}

// send sends a message and frees it.
func (c *conn) send(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice, more bool) error {
	defer msg.Free()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.flow.headerSent && !s.flow.done {
		if err := c.appendHeader(s); err != nil {
			return err
		}
	}
	if err := c.sendData(s, newSender(prefix[:], msg)); err != nil {
		return err
	}
	if !more || len(c.w.buf) >= outBytes {
		c.flush()
	}
	return nil
}

// member is message i of a run.
type member struct {
	r Run
	i int
}

func (m *member) AppendTo(b []byte) []byte { return m.r.Append(b, m.i) }

// sendInPlace encodes messages of a run directly into the write buffer, as many as that is
// possible for at the moment.
func (c *conn) sendInPlace(s *Stream, r Run, i, n int, more bool) (next int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := &member{r: r, i: i}
	for ; m.i < n; m.i++ {
		ok, err := c.appendInPlace(s, m, r.Most(m.i))
		if err != nil || !ok {
			return m.i, err
		}
		if len(c.w.buf) >= outBytes {
			c.flush()
		}
	}
	if !more {
		c.flush()
	}
	return m.i, nil
}

// replyInPlace does the same for the reply of a unary call, with its status.
func (c *conn) replyInPlace(s *Stream, m Appender, size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ok, err := c.appendInPlace(s, m, size)
	if !ok {
		return false
	}
	if err == nil {
		c.appendStatus(s, okStatus)
	}
	c.flush()
	return true
}

// answer appends the reply of f to a message of a stream. It leaves writing to the reader,
// which does it when it has handled everything that has arrived.
func (c *conn) answer(s *Stream, req []byte, most int, f Answer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.flow.headerSent || !c.fits(s, most) {
		return false
	}
	at := c.beginMessage(s, most)
	b, ok := f(c.w.buf, req)
	if !ok || len(b)-len(c.w.buf) > most {
		c.w.buf = c.w.buf[:at]
		return false
	}
	c.w.buf = b
	c.endMessage(s, at)
	c.in.taken(s, prefixLen+len(req))
	return true
}

// appendInPlace appends a message of at most most bytes, after the header if that has not
// been sent. It returns ok = false if the message must be compressed, or would have to
// wait for window or buffer space. c.mu must be held.
func (c *conn) appendInPlace(s *Stream, m Appender, most int) (ok bool, err error) {
	if !c.fits(s, most) {
		return false, nil
	}
	if !s.flow.headerSent {
		if err := c.appendHeader(s); err != nil {
			return true, err
		}
	}
	at := c.beginMessage(s, most)
	c.w.buf = m.AppendTo(c.w.buf)
	c.endMessage(s, at)
	return true, nil
}

// fits reports whether a message of at most most bytes can be appended as it is at the
// moment. c.mu must be held.
func (c *conn) fits(s *Stream, most int) bool {
	most += prefixLen
	return s.compressor == nil && most <= frameBytes && !s.flow.done && c.err == nil &&
		int64(most) <= c.out.of(s) && int64(most) <= c.out.conn && len(c.w.buf) < outBytes
}

// beginMessage appends the start of a DATA frame with a whole message, at most most bytes
// of which follow. It returns where the frame begins.
func (c *conn) beginMessage(s *Stream, most int) (at int) {
	c.w.room(most + prefixLen + frameHeadLen)
	at = len(c.w.buf)
	c.w.buf = append(appendFrameHead(c.w.buf, 0, frameData, 0, s.id), make([]byte, prefixLen)...)
	return at
}

// endMessage sets the lengths of the frame that begins at at, and of its message.
func (c *conn) endMessage(s *Stream, at int) {
	n := len(c.w.buf) - at - frameHeadLen
	c.w.buf[at], c.w.buf[at+1], c.w.buf[at+2] = byte(n>>16), byte(n>>8), byte(n)
	binary.BigEndian.PutUint32(c.w.buf[at+frameHeadLen+1:], uint32(n-prefixLen))
	c.out.take(s, n)
	c.pingsAllowed()
}

// sendData appends a message as DATA frames, blocking on flow control and on a full write
// buffer. c.mu must be held; it is released while waiting.
func (c *conn) sendData(s *Stream, p sender) error {
	for p.left > 0 {
		if s.flow.done || c.err != nil {
			return c.endOf(s)
		}
		switch {
		case c.out.of(s) <= 0:
			c.flush()
			if c.out.of(s) <= 0 && !s.flow.done && c.err == nil {
				c.wait(s, waitsForWindow)
			}
			continue
		case c.out.conn <= 0 || len(c.w.buf) >= outBytes:
			c.flush()
			if (c.out.conn <= 0 || len(c.w.buf) >= outBytes) && !s.flow.done && c.err == nil {
				c.wait(s, waitsForConn)
			}
			continue
		}
		if n := int(min(int64(p.adjacent()), int64(directMost), c.out.of(s), c.out.conn)); n >= directLeast && c.w.direct != nil && !c.w.busy {
			c.sendDirect(s, p.part(n))
			continue
		}
		n := int(min(int64(min(p.left, frameBytes)), c.out.of(s), c.out.conn))
		c.w.room(n + frameHeadLen)
		c.w.buf = p.appendTo(appendFrameHead(c.w.buf, n, frameData, 0, s.id), n)
		c.out.take(s, n)
		c.pingsAllowed()
	}
	if len(c.out.waiting) > 0 && c.out.conn > 0 && len(c.w.buf) < outBytes {
		c.out.wakeNext() // pass the room that is left to the next sender
	}
	return nil
}

// sendDirect writes a part of a message as DATA frames from where it is, after everything
// that is buffered. c.mu must be held; it is released while writing.
func (c *conn) sendDirect(s *Stream, part []byte) {
	c.out.take(s, len(part))
	c.pingsAllowed()
	w := &c.w
	w.room((len(part)/frameBytes + 1) * frameHeadLen)
	from := 0 // of w.buf: what is before it is in w.parts
	w.parts = w.parts[:0]
	for len(part) > 0 {
		n := min(len(part), frameBytes)
		w.buf = appendFrameHead(w.buf, n, frameData, 0, s.id)
		w.parts = append(w.parts, w.buf[from:], part[:n])
		from, part = len(w.buf), part[n:]
	}
	w.busy = true
	c.write(true)
	if !c.flushSome(flushTurns) {
		go c.flushOwned()
	}
}

// wait blocks the sender of a stream until it is woken. c.mu must be held; it is released
// while waiting.
func (c *conn) wait(s *Stream, why waitState) {
	if s.flow.ready == nil {
		s.flow.ready = make(chan struct{}, 1)
	}
	s.flow.waits = why
	switch why {
	case waitsForConn:
		c.out.waiting = append(c.out.waiting, s)
	case waitsForWindow:
		c.out.lacking++
	}
	c.mu.Unlock()
	<-s.flow.ready
	c.mu.Lock()
}

// endOf returns the error for sending on a stream that has ended.
func (c *conn) endOf(s *Stream) error {
	if c.err != nil {
		return errClosing
	}
	if errors.Is(s.Err(), context.DeadlineExceeded) {
		return errDeadline
	}
	return errCanceled
}

// reply answers a successful unary call.
func (c *conn) reply(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice) {
	defer msg.Free()
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.flow.done {
		return
	}
	err := error(nil)
	if !s.flow.headerSent {
		err = c.appendHeader(s)
	}
	if err == nil {
		err = c.sendData(s, newSender(prefix[:], msg))
	}
	if err == nil {
		c.appendStatus(s, okStatus)
	}
	c.flush()
}

// replyFrom answers with a message of size bytes that src produces. Pieces are sent before
// src is asked for the next one, unless that is immediately available.
func (c *conn) replyFrom(s *Stream, prefix [prefixLen]byte, src Source, size int) {
	piece, soon := prefix[:], true
	for left := prefixLen + size; ; {
		if left -= len(piece); !c.sendPiece(s, piece, soon, left == 0) || left == 0 {
			return
		}
		var err error
		if piece, soon, err = src.Next(); err != nil || len(piece) > left {
			c.endStream(s, true, codeInternal, context.Canceled)
			return
		}
	}
}

// sendPiece sends a piece of a reply, after the header for the first and before the status
// for the last. It reports whether more can follow.
func (c *conn) sendPiece(s *Stream, piece []byte, soon, last bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.flow.done || !s.flow.headerSent && c.appendHeader(s) != nil {
		return false
	}
	if c.sendData(s, newSender(piece, nil)) != nil {
		return false
	}
	if last {
		c.appendStatus(s, okStatus)
	}
	if last || !soon {
		c.flush()
	}
	return true
}

// finish ends a call with a status.
func (c *conn) finish(s *Stream, st *status.Status) {
	c.mu.Lock()
	n := len(c.w.buf)
	c.appendStatus(s, st)
	c.w.controls += len(c.w.buf) - n // a client can cause many of these without reading any
	c.flushElsewhere()
	c.mu.Unlock()
	s.cancel(context.Canceled)
}

func (c *conn) setHeader(s *Stream, md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.flow.headerSent || s.flow.done {
		return errHeaderSent
	}
	s.flow.header = metadata.Join(s.flow.header, md)
	return nil
}

func (c *conn) setTrailer(s *Stream, md metadata.MD) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.flow.trailer = metadata.Join(s.flow.trailer, md)
}

func (c *conn) sendHeader(s *Stream, md metadata.MD) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.flow.done || c.err != nil:
		return c.endOf(s)
	case s.flow.headerSent:
		return errHeaderTwice
	}
	s.flow.header = metadata.Join(s.flow.header, md)
	if err := c.appendHeader(s); err != nil {
		return err
	}
	c.flush()
	return nil
}

// appendHeader appends the response header. c.mu must be held.
func (c *conn) appendHeader(s *Stream) error {
	s.flow.headerSent = true
	c.pingsAllowed()
	if s.compressor == nil && len(s.flow.header) == 0 && s.req.subtype == "" && c.fields.takesPlain() {
		c.w.buf = appendHeaders(c.w.buf, plainHeader, false, s.id)
		return nil
	}
	var l fieldList
	c.fields.begin(&l)
	l.head(s.req.subtype)
	if s.compressor != nil {
		l.add("grpc-encoding", s.req.encoding)
	}
	l.metadata(s.flow.header)
	if !c.fields.takes(&l) {
		c.refuseHeaders(s)
		return errHeaderList
	}
	c.w.buf = appendHeaders(c.w.buf, l.block, false, s.id)
	return nil
}

// appendStatus ends a stream with a status unless it has already ended. c.mu must be held.
func (c *conn) appendStatus(s *Stream, st *status.Status) {
	if s.flow.done || c.err != nil {
		return
	}
	if !s.flow.headerSent && len(s.flow.header) > 0 && c.appendHeader(s) != nil {
		return
	}
	if st == okStatus && s.flow.headerSent && len(s.flow.trailer) == 0 && c.fields.takesPlain() {
		c.w.buf = appendHeaders(c.w.buf, plainTrailer, true, s.id)
	} else {
		var l fieldList
		c.fields.begin(&l)
		if !s.flow.headerSent {
			l.head(s.req.subtype)
		}
		l.status(st)
		l.metadata(s.flow.trailer)
		if !c.fields.takes(&l) {
			c.refuseHeaders(s)
			return
		}
		c.w.buf = appendHeaders(c.w.buf, l.block, true, s.id)
	}
	if !s.flow.clientEnded {
		c.w.buf = appendReset(c.w.buf, s.id, codeNo)
	}
	c.pingsAllowed()
	c.forget(s)
}

// refuseHeaders resets a stream because its header list exceeds the client's limit.
func (c *conn) refuseHeaders(s *Stream) {
	c.w.buf = appendReset(c.w.buf, s.id, codeInternal)
	c.forget(s)
}

// taken returns window to the client after a handler has taken n bytes.
func (c *conn) taken(s *Stream, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.flow.done {
		return
	}
	c.in.taken(s, n)
	c.flushElsewhere()
}

// extend grants a stream the window for a message longer than its window, or queues it
// for that.
func (c *conn) extend(s *Stream, missing int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.in.extend(s, missing)
}
