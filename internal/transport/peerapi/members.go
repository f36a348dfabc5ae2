package peerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

const (
	// PathMembers serves GET; the response is membership.EncodeMembers and a newline.
	PathMembers = "/members"
	// pathPromote is followed by the decimal id of a learner; anything else counts as an
	// unknown member. It serves POST, with the token of the caller's client; the
	// response is that of PathMembers.
	pathPromote = "/members/promote/"
	headerToken = "Authorization"
)

// promoteRefusals are the reasons not to promote a member that the client
// distinguishes.
var promoteRefusals = []struct {
	err    error
	status int
}{
	{membership.ErrIDNotFound, http.StatusNotFound},
	{membership.ErrLearnerNotReady, http.StatusPreconditionFailed},
	{membership.ErrMemberNotLearner, http.StatusPreconditionFailed},
}

func (h *handlers) members(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodGet) {
		return
	}
	w.Header().Set(HeaderCluster, h.clusterID())
	h.writeMembers(w, h.b.Members())
}

// writeMembers ends the body with a newline, as etcd's encoder does.
func (h *handlers) writeMembers(w http.ResponseWriter, ms []membership.Member) {
	data, err := membership.EncodeMembers(ms)
	if err != nil {
		h.o.Logger.Warn("failed to encode membership members", zap.Error(err))
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, append(data, '\n'))
}

// Members queries the members of the cluster, sorted by id, and the
// cluster's id. It uses the first valid response of a URL.
func (c *Client) Members(ctx context.Context, urls []string, timeout time.Duration) (ms []membership.Member, clusterID ids.Cluster, err error) {
	err = c.askAny(ctx, urls, PathMembers, timeout, func(h http.Header, b []byte) (err error) {
		if ms, err = membership.DecodeMembers(b); err != nil {
			return err
		}
		if clusterID, err = ids.ParseCluster(h.Get(HeaderCluster)); err != nil {
			return fmt.Errorf("cluster id: %w", err)
		}
		if len(ms) == 0 {
			return errors.New("no members in the answer")
		}
		for _, m := range ms {
			if m.ID == 0 || len(m.PeerURLs) == 0 {
				return fmt.Errorf("member %s without id or peer URLs in the answer", m.ID)
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return ms, clusterID, nil
}

func (h *handlers) promote(w http.ResponseWriter, r *http.Request) {
	if !allow(w, r, http.MethodPost) {
		return
	}
	w.Header().Set(HeaderCluster, h.clusterID())
	text := strings.TrimPrefix(r.URL.Path, pathPromote)
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("member %s not found in cluster", text), http.StatusNotFound)
		return
	}
	ms, err := h.b.PromoteMember(r.Context(), r.Header.Get(headerToken), ids.Member(id))
	if err == nil {
		h.writeMembers(w, ms)
		return
	}
	h.o.Logger.Warn("failed to promote a member", zap.Stringer("member-id", ids.Member(id)), zap.Error(err))
	for _, known := range promoteRefusals {
		if errors.Is(err, known.err) {
			http.Error(w, known.err.Error(), known.status)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusInternalServerError)
	io.WriteString(w, `{"message":"Internal Server Error"}`)
}

// Promote asks the leader at url to promote a learner, with the client's auth token if
// there is one, and returns the members afterwards. Final refusals are
// membership.ErrIDNotFound, ErrMemberNotLearner and ErrLearnerNotReady.
func (c *Client) Promote(ctx context.Context, url string, id ids.Member, token string) ([]membership.Member, error) {
	h := http.Header{}
	if token != "" {
		h.Set(headerToken, token)
	}
	_, b, err := c.ask(ctx, http.MethodPost, url+pathPromote+strconv.FormatUint(uint64(id), 10), h, nil)
	if r := refused(err); r != nil {
		for _, known := range promoteRefusals {
			// Two refusals share status 412 and differ in their text.
			if r.status == known.status && (r.status == http.StatusNotFound || strings.Contains(r.text, known.err.Error())) {
				return nil, known.err
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("member promote: %w", err)
	}
	return membership.DecodeMembers(b)
}
