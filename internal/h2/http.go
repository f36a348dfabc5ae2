package h2

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"quorate/internal/clock"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// ServeHTTP serves a call that arrived at a net/http server, from a client that mixes
// gRPC and other requests on one connection. It is as slow as net/http.
func (srv *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req, refused := parseRequest(fieldsOf(r))
	if refused != nil {
		st := refused.status
		if st == nil {
			st = statusOf(errCanceled)
		}
		http.Error(w, st.Message(), max(refused.http, http.StatusBadRequest))
		return
	}
	t := &httpCall{w: w, body: r.Body, out: http.NewResponseController(w)}
	t.room = sync.NewCond(&t.mu)
	s := &Stream{srv: srv, t: t, req: req, method: srv.methods[req.path]}
	s.in.max = srv.o.MaxMessage
	s.values = metadata.NewIncomingContext(peer.NewContext(context.Background(), peerOf(r)), req.md)
	stop := context.AfterFunc(r.Context(), func() { t.end(s, context.Canceled) })
	defer stop()
	if req.hasTimeout {
		s.expireAt(clock.Now().Add(req.timeout), req.timeout, func() { t.end(s, context.DeadlineExceeded) })
	}
	srv.handlers.Add(1)
	defer srv.handlers.Done()
	defer s.cancel(context.Canceled)
	switch {
	case s.method == nil:
		t.finish(s, srv.unknown(req.path))
	case s.method.unary != nil:
		t.receive(s)
		s.runUnary()
	default:
		received := make(chan struct{})
		go func() {
			defer close(received)
			t.receive(s)
		}()
		s.run()
		t.end(s, context.Canceled)
		r.Body.Close()
		<-received
	}
}

// fieldsOf returns the headers of a request as they were on the wire.
func fieldsOf(r *http.Request) []hpack.HeaderField {
	fields := []hpack.HeaderField{{Name: ":method", Value: r.Method}, {Name: ":path", Value: r.URL.Path}, {Name: ":authority", Value: r.Host}}
	for name, values := range r.Header {
		for _, v := range values {
			fields = append(fields, hpack.HeaderField{Name: strings.ToLower(name), Value: v})
		}
	}
	return fields
}

func peerOf(r *http.Request) *peer.Peer {
	p := &peer.Peer{Addr: textAddr(r.RemoteAddr)}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		p.LocalAddr = local
	}
	if r.TLS != nil {
		p.AuthInfo = credentials.TLSInfo{State: *r.TLS, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	}
	return p
}

// textAddr is an address known only as text.
type textAddr string

func (textAddr) Network() string  { return "tcp" }
func (a textAddr) String() string { return string(a) }

// httpCall is the transport of one call in a net/http request.
type httpCall struct {
	body io.Reader
	out  *http.ResponseController

	mu         sync.Mutex
	room       *sync.Cond // signaled when the handler has taken a message or the call has ended
	w          http.ResponseWriter
	trailer    metadata.MD
	headerSent bool
	done       bool
	unread     int
}

// receive reads the request body until it ends.
func (t *httpCall) receive(s *Stream) {
	buf := make([]byte, frameBytes)
	for {
		n, err := t.body.Read(buf)
		s.in.feed(buf[:n], func(int) {})
		if err == nil && (s.in.over() || s.method.unary != nil && s.in.broken() != nil) {
			return
		}
		if err != nil {
			if err != io.EOF {
				err = errCanceled
			}
			s.in.end(err)
			return
		}
		t.mu.Lock()
		for t.unread += n; t.unread > streamWindow && s.method.unary == nil && !t.done; {
			t.room.Wait()
		}
		t.mu.Unlock()
	}
}

func (t *httpCall) taken(_ *Stream, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unread -= n
	t.room.Broadcast()
}

// end marks the call as ended; nothing more is written.
func (t *httpCall) end(s *Stream, why error) {
	s.cancel(why)
	s.in.end(s.ended())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = true
	t.room.Broadcast()
}

func (t *httpCall) setHeader(_ *Stream, md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.headerSent || t.done {
		return errHeaderSent
	}
	addMetadata(t.w.Header(), "", md)
	return nil
}

func (t *httpCall) setTrailer(_ *Stream, md metadata.MD) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trailer = metadata.Join(t.trailer, md)
}

func (t *httpCall) sendHeader(s *Stream, md metadata.MD) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.done:
		return s.ended()
	case t.headerSent:
		return errHeaderTwice
	}
	addMetadata(t.w.Header(), "", md)
	t.writeHeader(s)
	return t.out.Flush()
}

func addMetadata(h http.Header, prefix string, md metadata.MD) {
	for name, values := range md {
		if reserved(name) {
			continue
		}
		for _, v := range values {
			h.Add(prefix+name, encodeMetadata(name, v))
		}
	}
}

func (t *httpCall) writeHeader(s *Stream) {
	if t.headerSent {
		return
	}
	t.headerSent = true
	contentType := baseContentType
	if s.req.subtype != "" {
		contentType += "+" + s.req.subtype
	}
	t.w.Header().Set("content-type", contentType)
	if s.compressor != nil {
		t.w.Header().Set("grpc-encoding", s.req.encoding)
	}
	t.w.WriteHeader(http.StatusOK)
}

func (t *httpCall) send(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice, more bool) error {
	defer msg.Free()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.write(s, prefix[:], msg, more)
}

func (t *httpCall) sendInPlace(_ *Stream, _ Run, i, _ int, _ bool) (int, error) { return i, nil }

func (t *httpCall) write(s *Stream, prefix []byte, msg mem.BufferSlice, more bool) error {
	if t.done {
		return s.ended()
	}
	t.writeHeader(s)
	_, err := t.w.Write(prefix)
	for i := 0; err == nil && i < len(msg); i++ {
		_, err = t.w.Write(msg[i].ReadOnlyData())
	}
	if err == nil && !more {
		err = t.out.Flush()
	}
	if err != nil {
		return errClosing
	}
	return nil
}

func (t *httpCall) reply(s *Stream, prefix [prefixLen]byte, msg mem.BufferSlice) {
	defer msg.Free()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.write(s, prefix[:], msg, true) == nil {
		t.writeStatus(s, okStatus)
	}
}

func (t *httpCall) replyFrom(s *Stream, prefix [prefixLen]byte, src Source, size int) {
	piece := prefix[:]
	for left := size; ; {
		t.mu.Lock()
		err := t.write(s, piece, nil, left == 0)
		if err == nil && left == 0 {
			t.writeStatus(s, okStatus)
		}
		t.mu.Unlock()
		if err != nil || left == 0 {
			return
		}
		if piece, _, err = src.Next(); err != nil || len(piece) == 0 || len(piece) > left {
			panic(http.ErrAbortHandler) // resets the stream
		}
		left -= len(piece)
	}
}

func (t *httpCall) replyInPlace(*Stream, Appender, int) bool { return false }

func (t *httpCall) answer(*Stream, []byte, int, Answer) bool { return false }

func (t *httpCall) finish(s *Stream, st *status.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.done {
		t.writeStatus(s, st)
	}
}

func (t *httpCall) writeStatus(s *Stream, st *status.Status) {
	t.done = true
	t.writeHeader(s)
	var l statusFields
	l.of(st)
	for _, f := range l {
		t.w.Header().Set(http.TrailerPrefix+f.Name, f.Value)
	}
	addMetadata(t.w.Header(), http.TrailerPrefix, t.trailer)
	t.out.Flush()
	t.room.Broadcast()
}

func (t *httpCall) handlerEnded() {}
