package apply

import (
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/command"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/legacy/v2state"
)

// legacy applies requests of the v2 API to its tree. It is the only part that knows them: for all others they are a
// command.Foreign.
type legacy struct{ state *v2state.State }

func (l *legacy) load(eng engine.Engine, index ids.Index, o Options) (err error) {
	if l.state, err = v2state.Load(eng, uint64(index), o.Cluster, o.Now); err != nil {
		return fmt.Errorf("load the tree of the v2 API: %w", err)
	}
	return nil
}

// request applies a request to the tree.
func (l *legacy) request(b engine.Batch, e *Entry, r command.Foreign, now func() time.Time, out *Outcome) {
	start := now()
	res := l.state.Apply(b, r)
	observeV2(res.Op, res.Err == nil, now().Sub(start))
	if e.Local {
		out.Results = append(out.Results, Result{ID: res.ID, Resp: res.Resp, Err: res.Err})
	}
}

// contents returns the request of a normal entry that is not empty: the one that the caller has decoded, or that
// of the entry's bytes.
func (e *Entry) contents() (req *pb.InternalRaftRequest, foreign command.Foreign, err error) {
	if e.Req != nil || e.Foreign != nil {
		return e.Req, e.Foreign, nil
	}
	if foreign, err = v2state.Read(e.Data); foreign != nil || err != nil {
		return nil, foreign, err
	}
	req, err = command.Decode(e.Data)
	return req, nil, err
}
