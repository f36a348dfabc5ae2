package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Stream is one call. Recv must be used by one goroutine and Send by one, which may
// differ; all other methods are safe for concurrent use.
type Stream struct {
	callContext
	srv    *Server
	t      transport
	id     uint32
	method *method // nil if the method is unknown
	req    request
	// compressor compresses replies with the encoding that the client uses; nil: none.
	compressor encoding.Compressor

	in inbox

	flow flow // guarded by conn.mu
}

// flow is the state of a stream on its connection.
type flow struct {
	header, trailer metadata.MD
	headerSent      bool
	done            bool // no more frames of this stream will be sent
	clientEnded     bool // the client has sent END_STREAM
	waits           waitState

	credit int64         // send window, relative to the connection's initialWindow
	ready  chan struct{} // wakes the sender; capacity 1

	recvWindow int64 // receive window left
	unread     int   // bytes received that the handler has not taken
	consumed   int   // bytes taken by the handler that the window has not been given back
	extended   int   // window granted beyond streamWindow
	wants      int   // extension it is waiting for

	due int // position in conn.deadlines, from 1; 0: not in it
}

type waitState byte

const (
	waitsNot waitState = iota
	waitsForWindow
	waitsForConn
)

// transport carries the frames of a stream: a connection of this server, or a
// net/http request.
type transport interface {
	// sendHeader sends the header: md and what setHeader has collected.
	sendHeader(s *Stream, md metadata.MD) error
	setHeader(s *Stream, md metadata.MD) error
	setTrailer(s *Stream, md metadata.MD)
	// send sends a message with its prefix. It returns when the whole message is in
	// the write buffer. With more set it does not flush: another message follows.
	send(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice, more bool) error
	// sendInPlace is send for the messages of r from number i on, of n in all, which
	// encode themselves into the write buffer. It returns the number of the first one for
	// which that is impossible at the moment.
	sendInPlace(s *Stream, r Run, i, n int, more bool) (next int, err error)
	// finish sends the status unless the stream has already ended.
	finish(s *Stream, st *status.Status)
	// reply combines send and finish for a successful call with one message.
	reply(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice)
	// replyFrom is reply for a message that is produced while it is being sent.
	replyFrom(s *Stream, prefix [prefixLen]byte, src Source, size int)
	// replyInPlace is reply for a message that encodes itself. It returns false, having
	// done nothing, if that is impossible at the moment.
	replyInPlace(s *Stream, m Appender, size int) (ok bool)
	// answer sends what f appends in reply to the message req, and takes that, if the reply
	// and the window for it have room at the moment and f does not decline. It does not block.
	answer(s *Stream, req []byte, most int, f Answer) bool
	// taken returns window to the client: the handler has taken n bytes.
	taken(s *Stream, n int)
	// handlerEnded is called after the handler has returned.
	handlerEnded()
}

// Context returns the context of the call. It is done when the client has cancelled
// or disconnected, the deadline has passed, or the handler has returned. It carries
// the metadata and the peer as in grpc-go.
func (s *Stream) Context() context.Context { return &s.callContext }

// Method returns the full method name, /service/method.
func (s *Stream) Method() string { return s.req.path }

// SetHeader adds to the header, which is sent with the first message or the status.
func (s *Stream) SetHeader(md metadata.MD) error { return s.t.setHeader(s, md) }

// SendHeader sends the header immediately.
func (s *Stream) SendHeader(md metadata.MD) error { return s.t.sendHeader(s, md) }

// SetTrailer adds to the trailer, which is sent with the status. It never fails; the
// error is part of the signature that callers need.
func (s *Stream) SetTrailer(md metadata.MD) error {
	s.t.setTrailer(s, md)
	return nil
}

// Recv returns the client's next message, which the caller owns, or io.EOF after the
// last. Any other error has ended the call, and its status has been sent.
func (s *Stream) Recv() ([]byte, error) {
	m, err := s.in.next(s.Done(), s.ended)
	if err == nil {
		s.t.taken(s, prefixLen+len(m.data))
		var b []byte
		if b, err = m.open(s.req.encoding, s.in.max); err == nil {
			return b, nil
		}
	}
	if err != io.EOF {
		s.t.finish(s, statusOf(err))
	}
	return nil, err
}

// OnMessage calls f on another goroutine whenever Recv would not block (a message, the
// end of messages, or an error that ends the call), until f returns false. It replaces
// a goroutine blocked in Recv: an idle stream needs none.
func (s *Stream) OnMessage(f func() bool) {
	s.in.onReady(func() {
		for s.in.more() {
			if !f() {
				return
			}
		}
	})
	s.AfterFunc(func() { s.in.end(s.ended()) })
}

// Answer appends the reply to the message req to b, or declines with ok = false, having
// changed nothing. It must not block, nor use the stream.
type Answer func(b, req []byte) (out []byte, ok bool)

// AnswerWith offers each message that arrives while the handler waits in Recv to f, on the
// goroutine that reads the connection. What f answers, in at most most bytes, Recv does not
// return: this saves waking the handler, and the replies to what has arrived together are
// written together. Recv returns what f declines, the first message, and all messages of
// which the replies would have to wait or to be compressed.
func (s *Stream) AnswerWith(most int, f Answer) {
	s.in.offer(func(req []byte) bool { return s.t.answer(s, req, most, f) })
}

// RecvOnly is Recv for methods whose clients send exactly one message. It returns
// after the client has sent it and half-closed the stream.
func (s *Stream) RecvOnly() ([]byte, error) {
	b, err := s.Recv()
	if err == io.EOF {
		err = errNoRequest
		s.t.finish(s, statusOf(err))
	}
	if err != nil {
		return nil, err
	}
	if _, err := s.Recv(); err != io.EOF {
		if err == nil {
			err = errManyRequests
			s.t.finish(s, statusOf(err))
		}
		return nil, err
	}
	return b, nil
}

// ended returns the error for a wait on a stream that has ended.
func (s *Stream) ended() error {
	if errors.Is(s.Err(), context.DeadlineExceeded) {
		return errDeadline
	}
	return errCanceled
}

var (
	errCanceled = status.Error(codes.Canceled, context.Canceled.Error())
	errDeadline = status.Error(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
	okStatus    = status.New(codes.OK, "")
)

// Send sends a message and frees it. It blocks on flow control and on a slow socket.
// With more set, another message follows at once, and sending it flushes both.
func (s *Stream) Send(msg mem.BufferSlice, more bool) error {
	prefix, msg, err := s.pack(msg)
	if err == nil {
		err = s.t.send(s, prefix, msg, more)
	}
	if err != nil {
		s.t.finish(s, statusOf(err))
	}
	return err
}

// Appender is a message that appends its encoding to a buffer.
type Appender interface{ AppendTo(b []byte) []byte }

// Run is a series of small messages.
type Run interface {
	// Most is an upper bound for the length of message i.
	Most(i int) int
	// Append appends message i to b.
	Append(b []byte, i int) []byte
}

// SendRun is Send for the messages of r from number i on and before n. They are encoded
// directly into the connection's write buffer when that is possible.
func (s *Stream) SendRun(r Run, i, n int, more bool) error {
	for ; i < n; i++ {
		next, err := s.t.sendInPlace(s, r, i, n, more)
		if err != nil {
			s.t.finish(s, statusOf(err))
			return err
		}
		if i = next; i == n {
			break
		}
		b := r.Append(make([]byte, 0, r.Most(i)), i)
		if err := s.Send(mem.BufferSlice{mem.SliceBuffer(b)}, more || i+1 < n); err != nil {
			return err
		}
	}
	return nil
}

// encoded returns m, of at most most bytes, encoded into a new buffer.
func encoded(m Appender, most int) mem.BufferSlice {
	return mem.BufferSlice{mem.SliceBuffer(m.AppendTo(make([]byte, 0, most)))}
}

// pack compresses a message if necessary and returns it with its prefix.
func (s *Stream) pack(msg mem.BufferSlice) (prefix [prefixLen]byte, out mem.BufferSlice, err error) {
	n, packed := msg.Len(), byte(0)
	if s.compressor != nil && n > 0 {
		b, err := compress(s.compressor, msg)
		msg.Free()
		if err != nil {
			return prefix, nil, err
		}
		packed, msg, n = 1, mem.BufferSlice{mem.SliceBuffer(b)}, len(b)
	}
	if prefix, err = prefixOf(packed, n); err != nil {
		msg.Free()
		return prefix, nil, err
	}
	return prefix, msg, nil
}

// prefixOf returns the prefix of a message of n bytes.
func prefixOf(packed byte, n int) (prefix [prefixLen]byte, err error) {
	if int64(n) > 1<<32-1 {
		return prefix, status.Errorf(codes.ResourceExhausted, "grpc: message too large (%d bytes)", n)
	}
	return [prefixLen]byte{packed, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, nil
}

func errCompressing(err error) error {
	return status.Errorf(codes.Internal, "grpc: error while compressing: %v", err)
}

func compress(c encoding.Compressor, msg mem.BufferSlice) ([]byte, error) {
	var out sliceWriter
	w, err := c.Compress(&out)
	for i := 0; err == nil && i < len(msg); i++ {
		_, err = w.Write(msg[i].ReadOnlyData())
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, errCompressing(err)
	}
	return out, nil
}

type sliceWriter []byte

func (w *sliceWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

// statusOf returns the status that a client gets for a handler's error.
func statusOf(err error) *status.Status {
	if err == nil {
		return okStatus
	}
	if st, ok := status.FromError(err); ok {
		return st
	}
	return status.FromContextError(err)
}

// run runs the handler of a streaming call.
func (s *Stream) run() {
	if err := s.prepare(); err != nil {
		s.t.finish(s, statusOf(err))
		return
	}
	s.t.finish(s, statusOf(s.method.stream(s)))
}

// runUnary runs the handler of a unary call whose request is complete.
func (s *Stream) runUnary() {
	req, err := s.request()
	if err != nil {
		s.t.finish(s, statusOf(err))
		return
	}
	r, err := s.method.unary(s, req)
	if err != nil {
		s.t.finish(s, statusOf(err))
		return
	}
	if r.Source != nil {
		s.replyFrom(r.Source, r.Size)
		return
	}
	if r.Small != nil {
		if s.t.replyInPlace(s, r.Small, r.Size) {
			return
		}
		r.Pieces = encoded(r.Small, r.Size)
	}
	prefix, msg, err := s.pack(r.Pieces)
	if err != nil {
		s.t.finish(s, statusOf(err))
		return
	}
	s.t.reply(s, prefix, msg)
}

// replyFrom answers with a message of size bytes that src produces.
func (s *Stream) replyFrom(src Source, size int) {
	defer src.Close()
	if s.compressor == nil {
		prefix, err := prefixOf(0, size)
		if err != nil {
			s.t.finish(s, statusOf(err))
			return
		}
		s.t.replyFrom(s, prefix, src, size)
		return
	}
	// The compressed length must be known before the first byte is sent, so the
	// compressed message is collected in memory.
	var out sliceWriter
	w, err := s.compressor.Compress(&out)
	for left := size; err == nil && left > 0; {
		var b []byte
		if b, _, err = src.Next(); err != nil {
			s.t.finish(s, statusOf(err))
			return
		}
		left -= len(b)
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	var prefix [prefixLen]byte
	if err != nil {
		err = errCompressing(err)
	} else {
		prefix, err = prefixOf(1, len(out))
	}
	if err != nil {
		s.t.finish(s, statusOf(err))
		return
	}
	s.t.reply(s, prefix, mem.BufferSlice{mem.SliceBuffer(out)})
}

func (s *Stream) request() ([]byte, error) {
	if err := s.prepare(); err != nil {
		return nil, err
	}
	m, err := s.in.only()
	if err != nil {
		return nil, err
	}
	return m.open(s.req.encoding, s.in.max)
}

// prepare finds the codec that the client compresses with: replies use the same one.
func (s *Stream) prepare() error {
	if s.req.encoding == "" || s.req.encoding == encoding.Identity {
		return nil
	}
	if s.compressor = encoding.GetCompressor(s.req.encoding); s.compressor == nil {
		return noDecompressor(s.req.encoding)
	}
	return nil
}

// unknown returns the status of a call to a method that is not registered.
func (srv *Server) unknown(path string) *status.Status {
	name, ok := strings.CutPrefix(path, "/")
	i := strings.LastIndexByte(name, '/')
	switch {
	case !ok || i < 0:
		return status.New(codes.Unimplemented, fmt.Sprintf("malformed method name: %q", path))
	case !srv.services[name[:i]]:
		return status.New(codes.Unimplemented, fmt.Sprintf("unknown service %v", name[:i]))
	}
	return status.New(codes.Unimplemented, fmt.Sprintf("unknown method %v for service %v", name[i+1:], name[:i]))
}
