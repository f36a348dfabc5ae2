package peerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"quorate/internal/clock"
	"quorate/internal/lease"
)

const (
	// pathLeases renews a lease: POST of a LeaseKeepAliveRequest returns a
	// LeaseKeepAliveResponse. pathLeaseInternal returns the remaining time: request and
	// response are messages whose field 1 is a LeaseTimeToLiveRequest or
	// LeaseTimeToLiveResponse.
	pathLeases        = "/leases"
	pathLeaseInternal = "/leases/internal"
	contentProto      = "application/protobuf"
	// leaseApplyWait is how long a leader may take to apply its committed entries
	// before it answers a query about a lease.
	leaseApplyWait = time.Second
	leaseRetry     = 50 * time.Millisecond // between rounds over the leader's URLs
)

// errApplyTimeout is the response of a member that could not catch up in
// time.
var errApplyTimeout = errors.New("waiting for node to catch up its applied index has timed out")

// LeaseTTL is the state of a lease, with times in seconds.
type LeaseTTL struct {
	TTL, GrantedTTL int64
	Keys            [][]byte // sorted; only if asked for
}

// LeaseServer serves requests that other members forward to the leader. Its
// methods return lease.ErrLeaseNotFound and lease.ErrNotPrimary unwrapped.
type LeaseServer interface {
	// WaitApplied returns once all entries committed by now are applied, or at
	// once if this member knows the lease; it returns an error if ctx is done
	// first.
	WaitApplied(ctx context.Context, id lease.ID) error
	RenewLease(ctx context.Context, id lease.ID) (ttl int64, err error)
	LeaseTimeToLive(ctx context.Context, id lease.ID, keys bool) (LeaseTTL, error)
}

func (h *handlers) leases(w http.ResponseWriter, r *http.Request) {
	s := h.o.Leases
	if r.Method != http.MethodPost {
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		http.Error(w, "request body too large", http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		http.Error(w, "error reading body", http.StatusBadRequest)
		return
	}
	if r.URL.Path == pathLeases {
		serveRenew(s, w, r, b)
	} else {
		serveTimeToLive(s, w, r, b)
	}
}

func waitApplied(s LeaseServer, w http.ResponseWriter, r *http.Request, id lease.ID) bool {
	ctx, cancel := context.WithTimeout(r.Context(), leaseApplyWait)
	defer cancel()
	if err := s.WaitApplied(ctx, id); err != nil {
		http.Error(w, errApplyTimeout.Error(), http.StatusRequestTimeout)
		return false
	}
	return true
}

func serveRenew(s LeaseServer, w http.ResponseWriter, r *http.Request, b []byte) {
	var req pb.LeaseKeepAliveRequest
	if err := proto.Unmarshal(b, &req); err != nil {
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	if !waitApplied(s, w, r, lease.ID(req.ID)) {
		return
	}
	ttl, err := s.RenewLease(r.Context(), lease.ID(req.ID))
	if err != nil {
		leaseError(w, err, http.StatusBadRequest)
		return
	}
	answerProto(w, &pb.LeaseKeepAliveResponse{ID: req.ID, TTL: ttl}, nil)
}

func serveTimeToLive(s LeaseServer, w http.ResponseWriter, r *http.Request, b []byte) {
	var req pb.LeaseTimeToLiveRequest
	inner, err := unwrapLease(b)
	if err == nil {
		err = proto.Unmarshal(inner, &req)
	}
	if err != nil {
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	if !waitApplied(s, w, r, lease.ID(req.ID)) {
		return
	}
	l, err := s.LeaseTimeToLive(r.Context(), lease.ID(req.ID), req.Keys)
	if err != nil {
		leaseError(w, err, http.StatusInternalServerError)
		return
	}
	answerProto(w, &pb.LeaseTimeToLiveResponse{Header: &pb.ResponseHeader{}, ID: req.ID,
		TTL: l.TTL, GrantedTTL: l.GrantedTTL, Keys: l.Keys}, wrapLease)
}

func leaseError(w http.ResponseWriter, err error, code int) {
	if errors.Is(err, lease.ErrLeaseNotFound) {
		code = http.StatusNotFound
		err = lease.ErrLeaseNotFound
	}
	http.Error(w, err.Error(), code)
}

func answerProto(w http.ResponseWriter, m proto.Message, wrap func([]byte) []byte) {
	b, err := proto.Marshal(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if wrap != nil {
		b = wrap(b)
	}
	w.Header().Set("Content-Type", contentProto)
	w.Write(b) // the client retries after a lost response
}

// wrapLease encodes b as field 1 of a message, the only field of
// LeaseInternalRequest and LeaseInternalResponse.
func wrapLease(b []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), b)
}

// unwrapLease returns field 1 of a message, the last one if there are
// several.
func unwrapLease(b []byte) (inner []byte, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		b = b[n:]
		n = protowire.ConsumeFieldValue(num, typ, b)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		if num == 1 && typ == protowire.BytesType {
			inner, _ = protowire.ConsumeBytes(b)
		}
		b = b[n:]
	}
	if inner == nil {
		return nil, errors.New("message has no field 1")
	}
	return inner, nil
}

// RenewLease renews a lease at the leader. leader returns the leader's peer
// URLs, waiting for a leader if there is none; it is called again for each
// round. The error is lease.ErrLeaseNotFound, the error of leader, or that of
// ctx.
func (c *Client) RenewLease(ctx context.Context, leader func(context.Context) ([]string, error), id lease.ID) (ttl int64, err error) {
	body, err := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: int64(id)})
	if err != nil {
		return 0, err
	}
	err = c.askLeader(ctx, leader, pathLeases, body, func(b []byte) error {
		var resp pb.LeaseKeepAliveResponse
		if err := proto.Unmarshal(b, &resp); err != nil {
			return fmt.Errorf("decode renewal: %w", err)
		}
		if got := lease.ID(resp.ID); got != id {
			return fmt.Errorf("renewal of lease %v for %v", got, id)
		}
		ttl = resp.TTL
		return nil
	})
	return ttl, err
}

// LeaseTimeToLive queries the leader for the remaining time of a lease. Its
// arguments and errors are those of RenewLease.
func (c *Client) LeaseTimeToLive(ctx context.Context, leader func(context.Context) ([]string, error), id lease.ID, keys bool) (l LeaseTTL, err error) {
	body, err := proto.Marshal(&pb.LeaseTimeToLiveRequest{ID: int64(id), Keys: keys})
	if err != nil {
		return l, err
	}
	err = c.askLeader(ctx, leader, pathLeaseInternal, wrapLease(body), func(b []byte) error {
		inner, err := unwrapLease(b)
		if err != nil {
			return fmt.Errorf("decode time to live: %w", err)
		}
		var resp pb.LeaseTimeToLiveResponse
		if err := proto.Unmarshal(inner, &resp); err != nil {
			return fmt.Errorf("decode time to live: %w", err)
		}
		if got := lease.ID(resp.ID); got != id {
			return fmt.Errorf("time to live of lease %v for %v", got, id)
		}
		l = LeaseTTL{TTL: resp.TTL, GrantedTTL: resp.GrantedTTL, Keys: resp.Keys}
		return nil
	})
	return l, err
}

// askLeader posts body to the leader's URLs in turn, repeatedly, until parse
// accepts a response. Only status 404 is final: any other refusal may
// disappear with the next leader.
func (c *Client) askLeader(ctx context.Context, leader func(context.Context) ([]string, error), path string, body []byte, parse func([]byte) error) error {
	header := http.Header{"Content-Type": {contentProto}}
	var last error
	for ctx.Err() == nil {
		urls, err := leader(ctx)
		if err != nil {
			return err
		}
		for _, u := range urls {
			_, b, err := c.ask(ctx, http.MethodPost, u+path, header, body)
			if err == nil {
				err = parse(b)
			}
			if r := refused(err); r != nil && r.status == http.StatusNotFound {
				return lease.ErrLeaseNotFound
			}
			if err == nil {
				return nil
			}
			last = err
		}
		select {
		case <-clock.After(leaseRetry):
		case <-ctx.Done():
		}
	}
	if last != nil && !errors.Is(last, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), last)
	}
	return ctx.Err()
}
