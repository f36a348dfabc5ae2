package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/zap"
)

// clusterHeader carries the ID of the cluster in hex without padding.
const clusterHeader = "X-Etcd-Cluster-ID"

// maxPeerBody bounds the bodies that peers send here; they hold one number.
const maxPeerBody = 64 << 10

// PeerBackend is what the peer handlers ask the member. All methods are called
// from request goroutines, concurrently.
type PeerBackend interface {
	ClusterID() uint64
	// MembersJSON returns the members as the JSON array of etcd's /members,
	// without a newline.
	MembersJSON() ([]byte, error)
	// PromoteMember makes a learner a voter, on the leader, and returns the
	// members after it as MembersJSON does. token is the caller's auth token,
	// empty without one. A *StatusError decides the answer; any other error is
	// answered with 500.
	PromoteMember(ctx context.Context, token string, id uint64) ([]byte, error)
	// HashKV hashes this member's keys at a revision. The Revision of the
	// header is the member's current one.
	HashKV(ctx context.Context, rev int64) (*pb.HashKVResponse, error)
	// DowngradeEnabled reports, after a linearizable read barrier, whether a
	// downgrade is under way.
	DowngradeEnabled(ctx context.Context) (bool, error)
	// Versions is Backend.Versions.
	Versions() (cluster, storage string)
}

// StatusError is an error with the HTTP status that a peer is to see.
type StatusError struct {
	Status int
	Err    error
}

func (e *StatusError) Error() string { return e.Err.Error() }

func (e *StatusError) Unwrap() error { return e.Err }

// PeerOptions of the peer handler.
type PeerOptions struct {
	Logger         *zap.Logger
	RequestTimeout time.Duration

	// Raft serves /raft and everything below it.
	Raft http.Handler
	// Extra serves more patterns, such as /leases.
	Extra map[string]http.Handler
}

// NewPeerHandler serves the peer URLs.
func NewPeerHandler(b PeerBackend, o PeerOptions) http.Handler {
	p := &peerHandlers{b: b, o: o}
	mux := http.NewServeMux()
	mux.HandleFunc("/members", p.members)
	mux.HandleFunc(promotePrefix, p.promote)
	mux.HandleFunc("/members/hashkv", p.hashKV)
	mux.HandleFunc("/downgrade/enabled", p.downgradeEnabled)
	mux.Handle("/version", versionHandler(b.Versions))
	if o.Raft != nil {
		mux.Handle("/raft", o.Raft)
		mux.Handle("/raft/", o.Raft)
	}
	for pattern, h := range o.Extra {
		mux.Handle(pattern, h)
	}
	return mux
}

type peerHandlers struct {
	b PeerBackend
	o PeerOptions
}

func (p *peerHandlers) clusterID() string { return strconv.FormatUint(p.b.ClusterID(), 16) }

func (p *peerHandlers) members(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	w.Header().Set(clusterHeader, p.clusterID())
	data, err := p.b.MembersJSON()
	if err != nil {
		p.o.Logger.Warn("failed to encode membership members", zap.Error(err))
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSONLine(w, data)
}

// writeJSONLine ends the body with a newline, as etcd's encoder does.
func writeJSONLine(w http.ResponseWriter, data []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(data[:len(data):len(data)], '\n'))
}

// promotePrefix stands before a member id; whatever else follows is no member.
const promotePrefix = "/members/promote/"

func (p *peerHandlers) promote(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodPost) {
		return
	}
	w.Header().Set(clusterHeader, p.clusterID())
	text := strings.TrimPrefix(r.URL.Path, promotePrefix)
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("member %s not found in cluster", text), http.StatusNotFound)
		return
	}
	data, err := p.b.PromoteMember(r.Context(), r.Header.Get("Authorization"), id)
	if err != nil {
		p.o.Logger.Warn("failed to promote a member", zap.String("member-id", strconv.FormatUint(id, 16)), zap.Error(err))
		if status := (*StatusError)(nil); errors.As(err, &status) {
			http.Error(w, status.Error(), status.Status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusInternalServerError)
		io.WriteString(w, `{"message":"Internal Server Error"}`)
		return
	}
	writeJSONLine(w, data)
}

func (p *peerHandlers) hashKV(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	if id := r.Header.Get(clusterHeader); id != "" && id != p.clusterID() {
		http.Error(w, "cluster ID mismatch", http.StatusPreconditionFailed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPeerBody))
	if err != nil {
		http.Error(w, "error reading body", http.StatusBadRequest)
		return
	}
	var req struct {
		Revision int64 `json:"revision"`
	}
	if err := json.Unmarshal(body, &req); err != nil {
		p.o.Logger.Warn("failed to unmarshal request", zap.Error(err))
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	resp, err := p.b.HashKV(r.Context(), req.Revision)
	if err != nil {
		p.o.Logger.Warn("failed to get hashKV", zap.Int64("requested-revision", req.Revision), zap.Error(err))
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	data, err := json.Marshal(resp)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set(clusterHeader, p.clusterID())
	w.Header().Set("Content-Type", "application/json")
	w.Write(data)
}

func (p *peerHandlers) downgradeEnabled(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	w.Header().Set(clusterHeader, p.clusterID())
	ctx, cancel := context.WithTimeout(r.Context(), p.o.RequestTimeout)
	defer cancel()
	enabled, err := p.b.DowngradeEnabled(ctx)
	if err != nil {
		http.Error(w, fmt.Sprintf("failed linearized read: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	io.WriteString(w, strconv.FormatBool(enabled))
}
