package server

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"quorate/internal/auth"
	"quorate/internal/watch"
)

// Watches creates watchers, and cancels those whose users may no longer read their keys.
type Watches struct {
	Access *Access
	auth   *auth.Store
	hub    *watch.Hub
}

// CreateWatch creates a watcher on the stream for the user of the call, or rejects it on the
// stream. From then on recheckWatches checks its permission.
func (w *Watches) CreateWatch(ctx context.Context, ws *watch.Stream, r *pb.WatchCreateRequest) error {
	if r.StartRevision < 0 {
		return ws.Create(r) // rejected, before anything else
	}
	who, st, err := w.Access.permit(ctx)
	if err == nil {
		key := r.Key
		if len(key) == 0 {
			key = []byte{0}
		}
		err = st.CanRead(who, key, r.RangeEnd)
	}
	if err != nil {
		return ws.Refuse(refusal(err))
	}
	if !st.Enabled() {
		who.User = ""
	}
	if err := ws.CreateFor(who.User, r); err != nil {
		return err
	}
	if w.auth.State() != st {
		w.recheckWatches()
	}
	return nil
}

// refusal returns the cancel reason that the client of a watcher gets.
func refusal(err error) string {
	for from, to := range map[error]error{
		auth.ErrInvalidAuthToken: rpctypes.ErrGRPCInvalidAuthToken,
		auth.ErrAuthOldRevision:  rpctypes.ErrGRPCAuthOldRevision,
		auth.ErrUserEmpty:        rpctypes.ErrGRPCUserEmpty,
	} {
		if errors.Is(err, from) {
			return to.Error()
		}
	}
	return rpctypes.ErrGRPCPermissionDenied.Error()
}

// recheckWatches cancels the watchers whose users may no longer read their keys.
func (w *Watches) recheckWatches() {
	st := w.auth.State()
	if !st.Enabled() {
		return
	}
	w.hub.Recheck(func(owner string, key, end []byte) string {
		who := auth.Info{User: owner, Rev: st.Revision()}
		if owner == "" {
			who = auth.Info{} // created while authentication was off
		}
		if err := st.CanRead(who, key, end); err != nil {
			return refusal(err)
		}
		return ""
	})
}

// Hub returns the watch hub.
func (w *Watches) Hub() *watch.Hub { return w.hub }
