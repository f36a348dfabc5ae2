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

// Stream is one call. Recv belongs to one goroutine and Send to one, which may be
// another; the rest is safe for all.
type Stream struct {
	callContext
	srv    *Server
	t      transport
	id     uint32
	method *method // nil: unknown
	req    request
	// compressor packs what is sent, as the client has packed what it sends.
	compressor encoding.Compressor

	in inbox

	flow flow // guarded by the lock of the connection
}

// flow is where a stream stands on its connection.
type flow struct {
	header, trailer metadata.MD
	headerSent      bool
	done            bool // no more frames of this stream are sent
	clientEnded     bool // by END_STREAM

	credit int64 // what the client lets us send, beyond the initial window
	waits  waitState
	ready  chan struct{} // wakes the sender

	recvWindow int64 // what the client may send
	unread     int   // of what it has sent, not yet taken by the handler
	consumed   int   // of what it has sent, taken by the handler and not given back
	extended   int   // of what it may send, beyond the usual
	wants      int   // beyond the usual, not yet given

	due int // its place among the deadlines of the connection, from 1; 0 without one
}

type waitState byte

const (
	waitsNot waitState = iota
	waitsForWindow
	waitsForConn
)

// transport is what carries a stream: a connection of this server, or a request
// of net/http's.
type transport interface {
	// sendHeader sends the header and what was set before.
	sendHeader(s *Stream, md metadata.MD) error
	setHeader(s *Stream, md metadata.MD) error
	setTrailer(s *Stream, md metadata.MD)
	// send sends a message with its prefix. It returns when the message waits for
	// the socket whole, and does not flush if more follows at once.
	send(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice, more bool) error
	// sendInPlace is send for a message that encodes itself; where that cannot be it
	// does nothing.
	sendInPlace(s *Stream, m Appender, most int, more bool) (ok bool, err error)
	// finish sends the status unless the stream has ended before.
	finish(s *Stream, st *status.Status)
	// reply is send and finish in one, for calls that succeed with one message.
	reply(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice)
	// replyFrom is reply for a message that is made while it is sent.
	replyFrom(s *Stream, prefix [prefixLen]byte, src Source, size int)
	// replyInPlace is reply for a message that encodes itself; where that cannot be
	// it does nothing.
	replyInPlace(s *Stream, m Appender, size int) (ok bool)
	// taken gives the client back what the handler has taken of its messages.
	taken(s *Stream, n int)
	// handlerEnded is called when the handler has returned.
	handlerEnded()
}

// Context is done when the call is: the client has cancelled it or gone, its
// deadline has passed, or the handler has returned. It holds the metadata and the
// peer as those of grpc-go's server do.
func (s *Stream) Context() context.Context { return &s.callContext }

// Method is the full name, /service/method.
func (s *Stream) Method() string { return s.req.path }

// SetHeader adds to the header, which goes out with the first message or status.
func (s *Stream) SetHeader(md metadata.MD) error { return s.t.setHeader(s, md) }

// SendHeader sends the header at once.
func (s *Stream) SendHeader(md metadata.MD) error { return s.t.sendHeader(s, md) }

// SetTrailer adds to the trailer, which goes out with the status. It returns no
// error, as gRPC's stream has none here.
func (s *Stream) SetTrailer(md metadata.MD) error {
	s.t.setTrailer(s, md)
	return nil
}

// Recv returns the client's next message, in memory that belongs to the caller;
// io.EOF when the client has no more. Any other error has ended the call, with a
// status that the client has been sent.
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

// OnMessage calls f on another goroutine whenever Recv would return at once, with a
// message, their end or the error that ends the call, until f returns false. It
// takes the place of a goroutine that waits in Recv: for a stream that is silent
// there is none.
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

// RecvOnly is Recv for methods whose clients send one message: it returns when
// the client has sent it and ended its side.
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

// ended is the error of who waits for a stream that has ended.
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

// Send sends a message, which it frees. It waits while the client takes no more,
// or the socket. Where more is set, another one follows at once and takes care of
// sending both.
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

// Appender is a message that encodes itself.
type Appender interface{ AppendTo(b []byte) []byte }

// SendSmall is Send for a message of at most most bytes, which is encoded where it
// waits for the socket if that can be.
func (s *Stream) SendSmall(m Appender, most int, more bool) error {
	ok, err := s.t.sendInPlace(s, m, most, more)
	if !ok {
		return s.Send(encoded(m, most), more)
	}
	if err != nil {
		s.t.finish(s, statusOf(err))
	}
	return err
}

// encoded is a message of at most most bytes in memory of its own.
func encoded(m Appender, most int) mem.BufferSlice {
	return mem.BufferSlice{mem.SliceBuffer(m.AppendTo(make([]byte, 0, most)))}
}

// pack returns a message as it goes out.
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

// prefixOf is the prefix of a message of n bytes.
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

// statusOf is what a client gets for an error of a handler.
func statusOf(err error) *status.Status {
	if err == nil {
		return okStatus
	}
	if st, ok := status.FromError(err); ok {
		return st
	}
	return status.FromContextError(err)
}

// run calls the handler of a streaming method.
func (s *Stream) run() {
	if err := s.prepare(); err != nil {
		s.t.finish(s, statusOf(err))
		return
	}
	s.t.finish(s, statusOf(s.method.stream(s)))
}

// runUnary answers a unary call whose request is complete.
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

// replyFrom answers with a message of size bytes that src makes.
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
	// What it packs to is not known before, so it waits in memory, packed.
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

// prepare looks at what the client packs its messages with: the answers are
// packed likewise.
func (s *Stream) prepare() error {
	if s.req.encoding == "" || s.req.encoding == encoding.Identity {
		return nil
	}
	if s.compressor = encoding.GetCompressor(s.req.encoding); s.compressor == nil {
		return noDecompressor(s.req.encoding)
	}
	return nil
}

// unknown is the status of a call of a method that is not in the table.
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
