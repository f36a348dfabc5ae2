// Package v2http serves the v2 API on client URLs: keys, members, machines, statistics and
// authentication.
//
// In: HTTP requests below /v2, and a small interface to the member. Out: one http.Handler.
// Always true: statuses, headers, bodies and texts are those of etcd 3.5 with --enable-v2;
// the key that is checked is the key that is used, and no path leads out of the keys of
// clients; the only state of the package is the number of watches.
package v2http

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2auth"
	"quorate/internal/legacy/v2store"
	"quorate/internal/membership"
	"quorate/internal/transport/peerapi"
)

// Prefix is the path of the handler, which serves everything below it.
const Prefix = "/v2"

const (
	keysPath     = Prefix + "/keys"
	membersPath  = Prefix + "/members"
	machinesPath = Prefix + "/machines"
	statsPath    = Prefix + "/stats"
	authPath     = Prefix + "/auth"
)

const (
	// maxBody bounds the body of a request, in bytes; net/http has the same limit for
	// forms.
	maxBody = 10 << 20
	// maxWatches bounds the watches of this member that wait for events. Further ones are
	// rejected with error 300.
	maxWatches = 100_000
	// patience is how long a client may take to read an event.
	patience = time.Minute
)

// Backend is the member. Its methods are called concurrently, from request goroutines.
type Backend interface {
	v2auth.Member // V2Do and the password methods

	// V2Watch returns a watcher on a path of the tree. Its channel has room for 100 events
	// and is closed at the 101st.
	V2Watch(path string, recursive, stream bool, since uint64) (*v2store.Watcher, error)
	// V2Stats returns the counters of the tree as JSON.
	V2Stats() []byte
	// SelfStats and LeaderStats return the member's message statistics as JSON; LeaderStats
	// returns nil on a member that does not lead.
	SelfStats() []byte
	LeaderStats() []byte

	ClusterID() ids.Cluster
	Term() ids.Term
	CommittedIndex() ids.Index
	// Leader returns the id of the leader, 0 if none is known.
	Leader() ids.Member
	// Members returns all members, sorted by id.
	Members() []membership.Member
	// IsRemoved reports whether a member with this id was removed.
	IsRemoved(id ids.Member) bool
	MemberAdd(ctx context.Context, peerURLs []string, learner bool) (*pb.Member, []*pb.Member, error)
	MemberRemove(ctx context.Context, id ids.Member) ([]*pb.Member, error)
	MemberUpdate(ctx context.Context, id ids.Member, peerURLs []string) ([]*pb.Member, error)
}

// Options of the handler.
type Options struct {
	Logger         *zap.Logger
	RequestTimeout time.Duration    // timeout of a request other than a watch
	ClientCertAuth bool             // a client without a password is the user named in its certificate
	Now            func() time.Time // base for TTLs; nil is the system clock
}

type handler struct {
	b        Backend
	o        Options
	lg       *zap.Logger
	auth     *v2auth.Store
	watching atomic.Int64
}

// NewHandler serves everything at and below Prefix.
func NewHandler(b Backend, o Options) http.Handler {
	if o.Now == nil {
		o.Now = clock.Now
	}
	h := &handler{b: b, o: o, lg: o.Logger, auth: v2auth.New(b, o.Logger)}
	mux := http.NewServeMux()
	for _, p := range []struct {
		pattern string
		methods []string
		serve   http.HandlerFunc
	}{
		{keysPath, keyMethods, h.keys},
		{keysPath + "/", keyMethods, h.keys},
		{membersPath, memberMethods, h.members},
		{membersPath + "/", memberMethods, h.members},
		{machinesPath, []string{"GET", "HEAD"}, h.machines},
		{statsPath + "/store", []string{"GET"}, h.stats(b.V2Stats)},
		{statsPath + "/self", []string{"GET"}, h.stats(b.SelfStats)},
		{statsPath + "/leader", []string{"GET"}, h.stats(b.LeaderStats)},
		{authPath + "/enable", []string{"GET", "PUT", "DELETE"}, h.enable},
	} {
		mux.HandleFunc(p.pattern, only(p.methods, p.serve))
	}
	for _, pattern := range []string{authPath + "/users", authPath + "/users/"} {
		mux.HandleFunc(pattern, h.named("users", h.users, h.user))
	}
	for _, pattern := range []string{authPath + "/roles", authPath + "/roles/"} {
		mux.HandleFunc(pattern, h.named("roles", h.roles, h.role))
	}
	return mux
}

// only answers 405 to other methods.
func only(methods []string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, m := range methods {
			if r.Method == m {
				next(w, r)
				return
			}
		}
		w.Header().Set("Allow", strings.Join(methods, ","))
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	}
}

// timeout ends with the request, or after the request timeout.
func (h *handler) timeout(r *http.Request) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), h.o.RequestTimeout)
}

func (h *handler) setCluster(w http.ResponseWriter) {
	w.Header().Set(peerapi.HeaderCluster, h.b.ClusterID().String())
}

// writeJSON sends v and a newline.
func (h *handler) writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		h.lg.Debug("failed to write a v2 response", zap.Error(err))
	}
}

// writeMessage sends an error, without a newline, for everything but keys.
func (h *handler) writeMessage(w http.ResponseWriter, status int, text string) {
	data, err := json.Marshal(struct {
		Message string `json:"message"`
	}{text})
	if err != nil { // cannot fail: it is one string
		data = nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(data)
}

// writeError sends err, for everything but keys.
func (h *handler) writeError(w http.ResponseWriter, r *http.Request, err error) {
	var refused *v2auth.Error
	var store *v2store.Error
	switch {
	case errors.As(err, &refused):
		h.writeMessage(w, refused.Status, refused.Text)
	case errors.As(err, &store):
		h.writeKeyError(w, store)
	default:
		h.lg.Warn("v2 response error", zap.String("remote-addr", r.RemoteAddr), zap.String("path", r.URL.Path), zap.Error(err))
		h.writeMessage(w, http.StatusInternalServerError, "Internal Server Error")
	}
}

// writeKeyError sends an error of a request on keys.
func (h *handler) writeKeyError(w http.ResponseWriter, e *v2store.Error) {
	w.Header().Set("X-Etcd-Index", strconv.FormatUint(e.Index, 10))
	h.writeJSON(w, e.Status(), e)
}

// causeOf returns the text of an error that is not the store's.
func causeOf(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		err = rpctypes.ErrGRPCTimeout
	}
	return rpctypes.ErrorDesc(err)
}
