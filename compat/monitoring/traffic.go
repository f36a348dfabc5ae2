package monitoring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// traffic is a client that repeatedly does everything that moves a series.
type traffic struct {
	conn  *grpc.ClientConn
	kv    pb.KVClient
	lease pb.LeaseClient
	maint pb.MaintenanceClient
	url   string
	n     int64
}

func newTraffic(addr string) (*traffic, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &traffic{conn: conn, kv: pb.NewKVClient(conn), lease: pb.NewLeaseClient(conn), maint: pb.NewMaintenanceClient(conn), url: "http://" + addr}, nil
}

// watch opens a stream with one watcher on all keys, and reads it until ctx is done.
func (c *traffic) watch(ctx context.Context) error {
	w, err := pb.NewWatchClient(c.conn).Watch(ctx)
	if err != nil {
		return err
	}
	req := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
		return err
	}
	if _, err := w.Recv(); err != nil {
		return err
	}
	go func() {
		for {
			if _, err := w.Recv(); err != nil {
				return
			}
		}
	}()
	return nil
}

// round sends a few of every kind of request.
func (c *traffic) round(ctx context.Context) error {
	var errs []error
	keep := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	var rev int64
	for range 20 {
		c.n++
		r, err := c.kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", c.n%50), Value: make([]byte, 500)})
		keep("put", err)
		rev = r.GetHeader().GetRevision()
	}
	_, err := c.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")})
	keep("range", err)
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t")}}}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("t")}}}
	_, err = c.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{put, get}})
	keep("txn", err)
	_, err = c.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k1"), RangeEnd: []byte("k2")})
	keep("delete", err)
	_, err = c.kv.Compact(ctx, &pb.CompactionRequest{Revision: rev})
	keep("compact", err)
	keep("leases", c.leases(ctx))
	_, err = c.maint.Defragment(ctx, &pb.DefragmentRequest{})
	keep("defragment", err)
	s, err := c.maint.Snapshot(ctx, &pb.SnapshotRequest{})
	for err == nil {
		_, err = s.Recv()
	}
	if !errors.Is(err, io.EOF) {
		keep("snapshot", err)
	}
	if _, err := pb.NewAuthClient(c.conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: "nobody", Password: "guessed"}); err == nil {
		keep("login", errors.New("accepted"))
	}
	keep("v2", c.v2(ctx))
	return errors.Join(errs...)
}

// leases grants two, renews and revokes one, and lets the other expire.
func (c *traffic) leases(ctx context.Context) error {
	kept, err := c.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 600})
	if err != nil {
		return err
	}
	if _, err := c.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 1}); err != nil {
		return err
	}
	alive, err := c.lease.LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	if err := alive.Send(&pb.LeaseKeepAliveRequest{ID: kept.GetID()}); err != nil {
		return err
	}
	if _, err := alive.Recv(); err != nil {
		return err
	}
	if err := alive.CloseSend(); err != nil {
		return err
	}
	_, err = c.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: kept.GetID()})
	return err
}

// v2 writes and reads a key of the v2 API, and makes requests that must fail. Writes may be refused while a
// member joins, so only the series are checked.
func (c *traffic) v2(ctx context.Context) error {
	for _, r := range []struct {
		method, path, body string
	}{
		{http.MethodPut, "a", "value=1"}, {http.MethodGet, "a", ""}, {http.MethodGet, "missing", ""}, {http.MethodPut, "a?prevValue=2", "value=3"},
	} {
		req, err := http.NewRequestWithContext(ctx, r.method, c.url+"/v2/keys/"+r.path, strings.NewReader(r.body))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		resp.Body.Close()
	}
	return nil
}

// alarm activates or clears an alarm of one member.
func (c *traffic) alarm(ctx context.Context, action pb.AlarmRequest_AlarmAction, kinds ...pb.AlarmType) error {
	for _, k := range kinds {
		if _, err := c.maint.Alarm(ctx, &pb.AlarmRequest{Action: action, MemberID: 1, Alarm: k}); err != nil {
			return err
		}
	}
	return nil
}

// run repeats rounds until ctx is done, and returns the first error before that.
func (c *traffic) run(ctx context.Context) error {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := c.round(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
