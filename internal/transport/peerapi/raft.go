package peerapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/membership"
)

const (
	pathRaft      = "/raft"          // POST of one message: 204
	pathSnapshot  = "/raft/snapshot" // POST of a message and a database: 204
	pathStream    = "/raft/stream/"  // GET of <Stream>/<id of the dialer>: an endless stream of messages
	pathProbing   = "/raft/probing"  // GET of health
	contentBinary = "application/octet-stream"
)

// Stream is one of the two streams of messages from a peer.
type Stream int

const (
	StreamMsgApp Stream = iota
	StreamMessage
)

// String returns the name of the stream in its path.
func (s Stream) String() string {
	if s == StreamMsgApp {
		return "msgapp"
	}
	return "message"
}

// RaftServer serves requests below /raft. Each method must begin with
// Sender.Accept.
type RaftServer interface {
	ServeMessage(http.ResponseWriter, *http.Request)
	ServeSnapshot(http.ResponseWriter, *http.Request)
	ServeStream(http.ResponseWriter, *http.Request)
}

// RaftHandler returns the handler of /raft and all paths below it.
func RaftHandler(s RaftServer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case path == pathRaft:
			s.ServeMessage(w, r)
		case path == pathSnapshot:
			s.ServeSnapshot(w, r)
		case path == pathProbing:
			serveProbing(w)
		case strings.HasPrefix(path, pathStream):
			s.ServeStream(w, r)
		default:
			http.NotFound(w, r)
		}
	})
}

// PostMessage returns the request that sends one message to a peer.
func (s *Sender) PostMessage(ctx context.Context, url string, body io.Reader) (*http.Request, error) {
	return s.post(ctx, url+pathRaft, contentProto, body)
}

// PostSnapshot returns the request that sends a snapshot and its database to a peer.
func (s *Sender) PostSnapshot(ctx context.Context, url string, body io.Reader) (*http.Request, error) {
	return s.post(ctx, url+pathSnapshot, contentBinary, body)
}

func (s *Sender) post(ctx context.Context, url, content string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return nil, fmt.Errorf("post to %s: %w", url, err)
	}
	s.sign(req.Header)
	req.Header.Set("Content-Type", content)
	return req, nil
}

// ErrRemoved is the response to a member that was removed from the cluster.
var ErrRemoved = errors.New("the member has been permanently removed from the cluster")

// PostAnswer returns the error in a response to PostMessage or PostSnapshot, nil if
// the peer has accepted the request. ErrRemoved means that this member was removed
// from the cluster.
func PostAnswer(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusNoContent:
		return nil
	case http.StatusForbidden:
		return ErrRemoved
	}
	return raftRefusal(resp)
}

// OpenStream returns the request for a stream from a member.
func (s *Sender) OpenStream(ctx context.Context, url string, which Stream, to ids.Member) (*http.Request, error) {
	url += pathStream + which.String() + "/" + s.ID.String()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", url, err)
	}
	s.sign(req.Header)
	req.Header.Set(headerTo, to.String())
	return req, nil
}

// firstStreamVersion is the oldest release with both streams; a member that
// sends no version header counts as older.
var firstStreamVersion = membership.Version{Major: 2, Minor: 1}

// ErrUnsupportedStream means that the server does not support these
// streams.
var ErrUnsupportedStream = errors.New("unsupported stream type")

// ErrUnknownSender means that the peer does not know this member yet.
var ErrUnknownSender = errors.New("the peer does not know this member yet")

// StreamAnswer returns the release of the peer that responded to OpenStream, and the
// reason if no stream follows: ErrUnsupportedStream, without a release;
// ErrIncompatible, ErrOtherCluster, ErrRemoved, ErrUnknownSender or another status.
func StreamAnswer(resp *http.Response) (membership.Version, error) {
	// Check the version before the status: a server that reports no version is
	// not a member, and must not be able to stop this one with a 410.
	v, err := versionIn(resp.Header, headerVersion)
	if err != nil || v.MajorMinor().Less(firstStreamVersion) {
		return membership.Version{}, ErrUnsupportedStream
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return v, nil
	case http.StatusGone:
		return v, ErrRemoved
	case http.StatusNotFound:
		return v, ErrUnknownSender
	}
	return v, raftRefusal(resp)
}

// raftRefusal turns a response other than success into an error. It reads no
// more of the body than its known texts need.
func raftRefusal(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		return fmt.Errorf("read answer with status %d: %w", resp.StatusCode, err)
	}
	text := strings.TrimSuffix(string(b), "\n")
	if resp.StatusCode == http.StatusPreconditionFailed {
		switch text {
		case ErrIncompatible.Error():
			return ErrIncompatible
		case ErrOtherCluster.Error():
			return fmt.Errorf("%w: the peer is of cluster %s", ErrOtherCluster, resp.Header.Get(HeaderCluster))
		}
	}
	return fmt.Errorf("unexpected status %d (%q)", resp.StatusCode, text)
}

// StreamOf returns which stream a request asks for, and the id of the dialer. An error
// is a Refusal.
func StreamOf(r *http.Request) (which Stream, from ids.Member, err error) {
	name, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, pathStream), "/")
	switch name {
	case StreamMsgApp.String():
		which = StreamMsgApp
	case StreamMessage.String():
		which = StreamMessage
	default:
		return 0, 0, Refusal{status: http.StatusNotFound, text: "invalid path"}
	}
	if from, err = ids.ParseMember(id); err != nil {
		return 0, 0, Refusal{status: http.StatusNotFound, text: "invalid from"}
	}
	return which, from, nil
}

// StreamHeader returns the status line and headers of a stream's response, which
// endless chunks follow.
func (s *Sender) StreamHeader() []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\n%s: %s\r\n%s: %s\r\nDate: %s\r\nTransfer-Encoding: chunked\r\n\r\n",
		HeaderCluster, s.Cluster, headerVersion, s.Version, clock.Now().UTC().Format(http.TimeFormat))
}

// Taken responds that a message or a snapshot was accepted.
func Taken(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) }

// Refusal is the reason to reject a raft request. Its status is never 403, which tells
// a member that it was removed.
type Refusal struct {
	status  int
	text    string
	closing bool // close the connection, too
}

func (r Refusal) Error() string { return r.text }

// Write writes r as the response to a request.
func (r Refusal) Write(w http.ResponseWriter) {
	if r.closing {
		w.Header().Set("Connection", "close")
	}
	http.Error(w, r.text, r.status)
}

// Refusals of streams and of messages.
var (
	StreamRemoved     = Refusal{status: http.StatusGone, text: "removed member"} // the dialer stops
	StreamUnknown     = Refusal{status: http.StatusNotFound, text: "error sender not found"}
	StreamMisdirected = Refusal{status: http.StatusPreconditionFailed, text: "to field mismatch"}
	StreamHTTP2       = Refusal{status: http.StatusInternalServerError, text: "streams need HTTP/1.1"}

	MessageUnread       = Refusal{status: http.StatusBadRequest, text: "error reading raft message"}
	MessageMalformed    = Refusal{status: http.StatusBadRequest, text: "error unmarshalling raft message"}
	MessageNotProcessed = Refusal{status: http.StatusInternalServerError, text: "error processing raft message", closing: true}

	SnapshotWrongType = Refusal{status: http.StatusBadRequest, text: "wrong raft message type"}
)

// SnapshotMalformed rejects a snapshot whose message cannot be decoded.
func SnapshotMalformed(err error) Refusal {
	return Refusal{status: http.StatusBadRequest, text: fmt.Sprintf("failed to decode raft message (%v)", err)}
}

// SnapshotNotStored rejects a snapshot whose database could not be stored.
func SnapshotNotStored(err error) Refusal {
	return Refusal{status: http.StatusInternalServerError, text: fmt.Sprintf("failed to save KV snapshot (%v)", err)}
}

// SnapshotNotProcessed rejects a snapshot that raft did not accept.
func SnapshotNotProcessed(err error) Refusal {
	return Refusal{status: http.StatusInternalServerError, text: fmt.Sprintf("failed to process raft message (%v)", err)}
}

// maxHealth bounds the response to a probe in bytes.
const maxHealth = 4 << 10

// health is the response to a probe.
type health struct {
	OK  bool
	Now time.Time
}

func serveProbing(w http.ResponseWriter) {
	b, err := json.Marshal(health{OK: true, Now: clock.Now()})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(append(b, '\n')) // ignore the error: the prober detects a failed write itself
}

// Probe checks the health of a peer with h and returns the peer's time of
// its response.
func Probe(ctx context.Context, h *http.Client, url string) (now time.Time, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+pathProbing, nil)
	if err != nil {
		return now, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return now, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return now, fmt.Errorf("status %d", resp.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil {
		return now, err
	}
	var answer health
	if err := json.Unmarshal(b, &answer); err != nil {
		return now, fmt.Errorf("decode answer: %w", err)
	}
	if !answer.OK {
		return now, errors.New("peer is unhealthy")
	}
	return answer.Now, nil
}
