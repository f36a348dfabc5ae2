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
	"quorate/internal/membership"
)

const (
	pathRaft      = "/raft"          // POST of one message: 204
	pathSnapshot  = "/raft/snapshot" // POST of a message and a database: 204
	pathStream    = "/raft/stream/"  // GET of <Stream>/<id of the dialer>: messages without end
	pathProbing   = "/raft/probing"  // GET of health
	contentBinary = "application/octet-stream"
)

// Stream is one of the two streams of messages from a peer.
type Stream int

const (
	StreamMsgApp Stream = iota
	StreamMessage
)

// String is the name of the stream in its path.
func (s Stream) String() string {
	if s == StreamMsgApp {
		return "msgapp"
	}
	return "message"
}

// RaftServer answers below /raft. Each method begins with Sender.Accept.
type RaftServer interface {
	ServeMessage(http.ResponseWriter, *http.Request)
	ServeSnapshot(http.ResponseWriter, *http.Request)
	ServeStream(http.ResponseWriter, *http.Request)
}

// RaftHandler serves /raft and everything below it.
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

// ErrRemoved is the answer to a member that is no longer in the cluster.
var ErrRemoved = errors.New("the member has been permanently removed from the cluster")

// PostAnswer is the error of an answer to PostMessage or PostSnapshot, nil if the peer
// has taken it. ErrRemoved says that this member is not in the cluster any more.
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
func (s *Sender) OpenStream(ctx context.Context, url string, which Stream, to uint64) (*http.Request, error) {
	url += pathStream + which.String() + "/" + membership.FormatID(s.ID)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", url, err)
	}
	s.sign(req.Header)
	req.Header.Set(headerTo, membership.FormatID(to))
	return req, nil
}

// firstStreamVersion is the oldest release that has both streams; a member
// that sends no version header counts as older.
var firstStreamVersion = membership.Version{Major: 2, Minor: 1}

// ErrUnsupportedStream says that what answers has no such streams.
var ErrUnsupportedStream = errors.New("unsupported stream type")

// ErrUnknownSender says that the peer does not know this member yet.
var ErrUnknownSender = errors.New("the peer does not know this member yet")

// StreamAnswer is the release of the peer that answered OpenStream, and why it is not
// followed by a stream: ErrUnsupportedStream, with which there is no release;
// ErrIncompatible, ErrOtherCluster, ErrRemoved, ErrUnknownSender or another status.
func StreamAnswer(resp *http.Response) (membership.Version, error) {
	// Before the status: who does not even tell its version is not a member, and
	// must not be able to end this one with a 410.
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

// raftRefusal turns an answer that is not a success into an error. The body is
// read only as far as its text can matter.
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

// StreamOf is what a request for a stream asks for: which, and who dials. An error is a
// Refusal.
func StreamOf(r *http.Request) (which Stream, from uint64, err error) {
	name, id, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, pathStream), "/")
	switch name {
	case StreamMsgApp.String():
		which = StreamMsgApp
	case StreamMessage.String():
		which = StreamMessage
	default:
		return 0, 0, Refusal{status: http.StatusNotFound, text: "invalid path"}
	}
	if from, err = membership.ParseID(id); err != nil {
		return 0, 0, Refusal{status: http.StatusNotFound, text: "invalid from"}
	}
	return which, from, nil
}

// StreamHeader is the head of the answer to a stream, whose chunks follow without end.
func (s *Sender) StreamHeader() []byte {
	return fmt.Appendf(nil, "HTTP/1.1 200 OK\r\n%s: %s\r\n%s: %s\r\nDate: %s\r\nTransfer-Encoding: chunked\r\n\r\n",
		HeaderCluster, membership.FormatID(s.Cluster), headerVersion, s.Version, clock.Now().UTC().Format(http.TimeFormat))
}

// Taken answers that a message or a snapshot has been taken.
func Taken(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) }

// Refusal is why a raft request is not taken. Never is it 403: a member that reads that
// takes itself for removed.
type Refusal struct {
	status  int
	text    string
	closing bool // the connection, too
}

func (r Refusal) Error() string { return r.text }

// Write answers a request with r.
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

// SnapshotMalformed refuses what cannot be read as a message.
func SnapshotMalformed(err error) Refusal {
	return Refusal{status: http.StatusBadRequest, text: fmt.Sprintf("failed to decode raft message (%v)", err)}
}

// SnapshotNotStored refuses a snapshot whose database could not be stored.
func SnapshotNotStored(err error) Refusal {
	return Refusal{status: http.StatusInternalServerError, text: fmt.Sprintf("failed to save KV snapshot (%v)", err)}
}

// SnapshotNotProcessed refuses a snapshot that raft did not take.
func SnapshotNotProcessed(err error) Refusal {
	return Refusal{status: http.StatusInternalServerError, text: fmt.Sprintf("failed to process raft message (%v)", err)}
}

// maxHealth bounds the answer to a probe.
const maxHealth = 4 << 10

// health is the answer to a probe.
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
	w.Write(append(b, '\n')) // the prober notices a failed write itself
}

// Probe asks a peer how it is, by h, and returns its time when it answered.
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
		return now, errors.New("peer says that it is not well")
	}
	return answer.Now, nil
}
