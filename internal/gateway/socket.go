package gateway

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/gorilla/websocket"
	"go.uber.org/zap"
)

const (
	socketBuffer = 1 << 10
	// answerBuffer is the initial size of the buffer for one line of a response, maxAnswer
	// its largest size.
	answerBuffer = 64 << 10
	maxAnswer    = 1<<31 - 1
	bearer       = "Bearer"
	tokenCookie  = "token"
)

// sockets converts a websocket into a streaming request: each message of the client becomes
// a line of the request body, and each line of the response a message. Other requests are
// passed through.
type sockets struct {
	next       http.Handler
	lg         *zap.Logger
	maxMessage int64
}

// Browsers may connect from any origin, as with plain requests; the member is protected by
// its host whitelist.
var upgrader = websocket.Upgrader{
	ReadBufferSize: socketBuffer, WriteBufferSize: socketBuffer,
	CheckOrigin: func(*http.Request) bool { return true },
}

func (s *sockets) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !websocket.IsWebSocketUpgrade(r) {
		s.next.ServeHTTP(w, r)
		return
	}
	var answer http.Header
	if strings.HasPrefix(r.Header.Get("Sec-WebSocket-Protocol"), bearer) {
		answer = http.Header{"Sec-WebSocket-Protocol": {bearer}}
	}
	conn, err := upgrader.Upgrade(w, r, answer)
	if err != nil {
		s.lg.Warn("failed to upgrade to a websocket", zap.String("remote", r.RemoteAddr), zap.Error(err))
		return
	}
	if s.maxMessage > 0 {
		conn.SetReadLimit(s.maxMessage)
	}
	s.serve(conn, r)
}

// serve runs the request until either side ends it. Three goroutines copy data: this one
// writes to the websocket, one reads from it, and one runs the handler. Closing the
// websocket and both pipes makes all of them return.
func (s *sockets) serve(conn *websocket.Conn, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	bodyReader, body := io.Pipe()
	lines, out := io.Pipe()
	read, handled := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(read)
		defer cancel()
		s.readMessages(conn, body)
	}()
	go func() {
		defer close(handled)
		s.next.ServeHTTP(&lineWriter{header: make(http.Header), out: out}, outgoing(ctx, r, bodyReader))
		out.Close()
	}()
	s.writeMessages(conn, lines)
	cancel()
	conn.Close()
	lines.Close()
	bodyReader.Close()
	<-read
	<-handled
}

// outgoing returns the request that the websocket represents.
func outgoing(ctx context.Context, r *http.Request, body io.ReadCloser) *http.Request {
	out := r.Clone(ctx)
	out.Method, out.Body, out.Header = http.MethodPost, body, make(http.Header)
	out.ContentLength, out.TransferEncoding = -1, nil
	for _, name := range []string{"Origin", "Referer"} {
		if v := r.Header.Get(name); v != "" {
			out.Header.Set(name, v)
		}
	}
	// A browser cannot set the headers of an upgrade, so a token comes as a subprotocol or in
	// a cookie.
	if p := r.Header.Get("Sec-WebSocket-Protocol"); p != "" {
		if _, token, ok := strings.Cut(p, bearer+","); ok {
			out.Header.Set("Authorization", bearer+" "+strings.Trim(token, " "))
		}
	}
	if c, err := r.Cookie(tokenCookie); err == nil {
		out.Header.Set("Authorization", bearer+" "+c.Value)
	}
	return out
}

// readMessages copies messages to body until the websocket or the handler ends.
func (s *sockets) readMessages(conn *websocket.Conn, body *io.PipeWriter) {
	defer body.Close()
	for {
		_, payload, err := conn.ReadMessage()
		if err != nil {
			if !websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway) && !errors.Is(err, net.ErrClosed) {
				s.lg.Warn("failed to read from a websocket", zap.String("remote", conn.RemoteAddr().String()), zap.Error(err))
			}
			return
		}
		if _, err := body.Write(append(payload, '\n')); err != nil {
			return
		}
	}
}

func (s *sockets) writeMessages(conn *websocket.Conn, lines io.Reader) {
	scanner := bufio.NewScanner(lines)
	scanner.Buffer(make([]byte, 0, answerBuffer), maxAnswer)
	for scanner.Scan() {
		if len(scanner.Bytes()) == 0 {
			continue
		}
		if err := conn.WriteMessage(websocket.TextMessage, scanner.Bytes()); err != nil {
			s.lg.Warn("failed to write to a websocket", zap.String("remote", conn.RemoteAddr().String()), zap.Error(err))
			return
		}
	}
}

// lineWriter is the response writer behind a websocket. It drops status and headers, for
// which a websocket has no place; errors are in the body.
type lineWriter struct {
	header http.Header
	out    io.Writer
}

func (w *lineWriter) Header() http.Header         { return w.header }
func (w *lineWriter) WriteHeader(int)             {}
func (w *lineWriter) Flush()                      {}
func (w *lineWriter) Write(b []byte) (int, error) { return w.out.Write(b) }
