package peerapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/mvcc"
)

// pathHashKV serves GET, with a hashQuestion as its body and the cluster in the header;
// the response is a hashAnswer.
const pathHashKV = "/members/hashkv"

type hashQuestion struct {
	Revision ids.Revision `json:"revision"` // 0 for the current one
}

// hashAnswer is a HashKVResponse as JSON.
type hashAnswer struct {
	Header struct {
		Revision ids.Revision `json:"revision,omitempty"`
	} `json:"header"`
	Hash            uint32       `json:"hash,omitempty"`
	CompactRevision ids.Revision `json:"compact_revision,omitempty"`
	HashRevision    ids.Revision `json:"hash_revision,omitempty"` // not before 3.6
}

func (h *handlers) hashKV(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	if id := r.Header.Get(HeaderCluster); id != "" && id != h.clusterID() {
		http.Error(w, ErrOtherCluster.Error(), http.StatusPreconditionFailed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, "error reading body", http.StatusBadRequest)
		return
	}
	var q hashQuestion
	if err := json.Unmarshal(body, &q); err != nil {
		h.o.Logger.Warn("failed to unmarshal request", zap.Error(err))
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	hash, err := h.b.HashKV(r.Context(), q.Revision)
	if err != nil {
		h.o.Logger.Warn("failed to get hashKV", zap.Int64("requested-revision", int64(q.Revision)), zap.Error(err))
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a := hashAnswer{Hash: hash.Hash, CompactRevision: hash.CompactRev, HashRevision: hash.HashRev}
	a.Header.Revision = hash.CurrentRev
	data, err := json.Marshal(a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set(HeaderCluster, h.clusterID())
	writeJSON(w, data)
}

// HashKV queries the member at url for its hash at a revision, 0 for the current one;
// HashRev is 0 if the member runs etcd 3.5. Refusals are mvcc.ErrCompacted,
// mvcc.ErrFutureRev, ErrOtherCluster, and others with their text.
func (c *Client) HashKV(ctx context.Context, url string, clusterID ids.Cluster, rev ids.Revision) (mvcc.HashResult, error) {
	body, err := json.Marshal(hashQuestion{Revision: rev})
	if err != nil {
		return mvcc.HashResult{}, err
	}
	h := http.Header{}
	h.Set("Content-Type", "application/json")
	h.Set(HeaderCluster, clusterID.String())
	_, b, err := c.ask(ctx, http.MethodGet, url+pathHashKV, h, body)
	if err != nil {
		return mvcc.HashResult{}, hashRefusal(err)
	}
	var a hashAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return mvcc.HashResult{}, fmt.Errorf("decode hash of %s: %w", url, err)
	}
	return mvcc.HashResult{Hash: a.Hash, CompactRev: a.CompactRevision, HashRev: a.HashRevision, CurrentRev: a.Header.Revision}, nil
}

func hashRefusal(err error) error {
	r := refused(err)
	switch {
	case r == nil:
		return err
	case r.status == http.StatusPreconditionFailed:
		return ErrOtherCluster
	case r.status == http.StatusBadRequest:
		for _, known := range []error{mvcc.ErrCompacted, mvcc.ErrFutureRev} {
			if strings.Contains(r.text, known.Error()) {
				return known
			}
		}
	}
	return fmt.Errorf("unknown error: %s", r.text)
}
