package observe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// client is a connection to one member and, while load leaves it open, one watch stream.
type client struct {
	conn  *grpc.ClientConn
	kv    pb.KVClient
	lease pb.LeaseClient
	maint pb.MaintenanceClient

	endWatch context.CancelFunc
}

func dial(addr string) (*client, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to server: %w", err)
	}
	return &client{
		conn: conn, kv: pb.NewKVClient(conn), lease: pb.NewLeaseClient(conn),
		maint: pb.NewMaintenanceClient(conn), endWatch: func() {},
	}, nil
}

func (c *client) close() {
	c.endWatch()
	c.conn.Close()
}

// isLeader asks the member whether it leads.
func (c *client) isLeader(ctx context.Context) (bool, error) {
	st, err := c.maint.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return false, err
	}
	return st.GetLeader() == st.GetHeader().GetMemberId(), nil
}

const (
	loadPuts    = 20
	shortTTL    = 2 // seconds; about the minimum that a server grants
	expiryLimit = 10 * time.Second
)

// load sends the same requests to every server that it is called for, one after the other, and leaves two
// watchers open. The answers must not depend on timing, because their counts are compared.
func (c *client) load(ctx context.Context) error {
	ctx = metadata.AppendToOutgoingContext(ctx, "client-api-version", "3.7")
	for _, step := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"watch", c.openWatch}, {"keys", c.keys}, {"leases", c.leases},
		{"maintenance", c.maintenance}, {"refusals", c.refusals}, {"quiet", c.quiet},
	} {
		if err := step.run(ctx); err != nil {
			return fmt.Errorf("load: %s: %w", step.name, err)
		}
	}
	return nil
}

// openWatch opens one stream with two watchers and keeps reading it.
func (c *client) openWatch(ctx context.Context) error {
	ctx, c.endWatch = context.WithCancel(ctx)
	w, err := pb.NewWatchClient(c.conn).Watch(ctx)
	if err != nil {
		return err
	}
	for _, key := range []string{"k", "none"} {
		req := &pb.WatchCreateRequest{Key: []byte(key), RangeEnd: []byte(key + "~")}
		if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
			return err
		}
		if m, err := w.Recv(); err != nil || !m.GetCreated() {
			return fmt.Errorf("no created answer: %v, %w", m, err)
		}
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

func (c *client) keys(ctx context.Context) error {
	var errs []error
	keep := func(err error) { errs = append(errs, err) }
	for i := range loadPuts {
		_, err := c.kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Value: make([]byte, 100)})
		keep(err)
	}
	for _, local := range []bool{false, true} {
		_, err := c.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Serializable: local})
		keep(err)
	}
	get := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte("k1")}}}
	for _, ops := range [][]*pb.RequestOp{{putOp("kt")}, {putOp("kt2"), get}, {get}, {get, get}} {
		_, err := c.kv.Txn(ctx, &pb.TxnRequest{Success: ops})
		keep(err)
	}
	_, err := c.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("k10"), RangeEnd: []byte("k13")})
	keep(err)
	r, err := c.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k1")})
	keep(err)
	_, err = c.kv.Compact(ctx, &pb.CompactionRequest{Revision: r.GetHeader().GetRevision(), Physical: true})
	keep(err)
	st, err := c.kv.RangeStream(ctx, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l")})
	keep(err)
	if err == nil {
		keep(drain(func() error { _, err := st.Recv(); return err }))
	}
	return errors.Join(errs...)
}

func putOp(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte("v")}}}
}

func drain(recv func() error) error {
	for {
		if err := recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// leases grants three leases, renews one, revokes one and lets one expire together with its key.
func (c *client) leases(ctx context.Context) error {
	for id, ttl := range map[int64]int64{101: 600, 102: 600, 103: shortTTL} {
		if _, err := c.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl}); err != nil {
			return err
		}
	}
	if _, err := c.kv.Put(ctx, &pb.PutRequest{Key: []byte("kl"), Lease: 103}); err != nil {
		return err
	}
	alive, err := c.lease.LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	if err := alive.Send(&pb.LeaseKeepAliveRequest{ID: 101}); err != nil {
		return err
	}
	if _, err := alive.Recv(); err != nil {
		return err
	}
	if err := alive.CloseSend(); err != nil {
		return err
	}
	if err := drain(func() error { _, err := alive.Recv(); return err }); err != nil {
		return err
	}
	if _, err := c.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 101}); err != nil {
		return err
	}
	if _, err := c.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 102}); err != nil {
		return err
	}
	_, err = c.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	return err
}

func (c *client) maintenance(ctx context.Context) error {
	var errs []error
	keep := func(err error) { errs = append(errs, err) }
	_, err := pb.NewClusterClient(c.conn).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	keep(err)
	_, err = c.maint.Status(ctx, &pb.StatusRequest{})
	keep(err)
	_, err = c.maint.Hash(ctx, &pb.HashRequest{})
	keep(err)
	_, err = c.maint.HashKV(ctx, &pb.HashKVRequest{})
	keep(err)
	_, err = c.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_GET})
	keep(err)
	_, err = c.maint.Defragment(ctx, &pb.DefragmentRequest{})
	keep(err)
	st, err := c.maint.Snapshot(ctx, &pb.SnapshotRequest{})
	keep(err)
	if err == nil {
		keep(drain(func() error { _, err := st.Recv(); return err }))
	}
	_, err = healthpb.NewHealthClient(c.conn).Check(ctx, &healthpb.HealthCheckRequest{})
	keep(err)
	return errors.Join(errs...)
}

// refusals are requests that fail, so that the codes of failures are compared as well.
func (c *client) refusals(ctx context.Context) error {
	for name, err := range map[string]error{
		"empty key":     second(c.kv.Put(ctx, &pb.PutRequest{})),
		"future":        second(c.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k"), Revision: 1 << 40})),
		"unknown lease": second(c.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Lease: 999})),
		"revoke":        second(c.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 999})),
		"compact":       second(c.kv.Compact(ctx, &pb.CompactionRequest{Revision: 1})),
		"member":        second(pb.NewClusterClient(c.conn).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 999})),
	} {
		if err == nil {
			return fmt.Errorf("%s: accepted", name)
		}
	}
	return nil
}

func second[T any](_ T, err error) error { return err }

// quiet returns when the short lease has expired, which is the last effect of load.
func (c *client) quiet(ctx context.Context) error {
	end := time.Now().Add(expiryLimit)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		// Not counted as a read of the store: the answer comes from the leases.
		ls, err := c.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		if err != nil {
			return err
		}
		found := false
		for _, l := range ls.GetLeases() {
			found = found || l.GetID() == 103
		}
		if !found {
			return nil
		}
		if time.Now().After(end) {
			return errors.New("a lease did not expire")
		}
		<-tick.C
	}
}
