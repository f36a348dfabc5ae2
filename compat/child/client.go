package child

import (
	"context"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Client calls one member, without retries and without failover, so that each outcome is that of one call.
type Client struct {
	Conn *grpc.ClientConn
	pb.KVClient
	Watcher     pb.WatchClient
	Maintenance pb.MaintenanceClient
	Cluster     pb.ClusterClient
	Lease       pb.LeaseClient
}

// Dial connects to the member at addr, host:port. A lost connection is tried again after at most
// a quarter of a second.
func Dial(t testing.TB, addr string) *Client {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 2 * time.Second,
			Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: 250 * time.Millisecond}}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &Client{Conn: conn, KVClient: pb.NewKVClient(conn), Watcher: pb.NewWatchClient(conn),
		Maintenance: pb.NewMaintenanceClient(conn), Cluster: pb.NewClusterClient(conn), Lease: pb.NewLeaseClient(conn)}
}

// NeverSent reports whether a call failed because there was no connection to send it on: the connection was
// refused, or closed before the server had sent anything. When an established connection breaks, gRPC reports
// what its reader got, never a failed write.
func NeverSent(err error) bool {
	text := status.Convert(err).Message()
	return strings.Contains(text, "Error while dialing") || strings.Contains(text, "error reading server preface") ||
		strings.HasPrefix(text, "write tcp ")
}

// PutWithin writes one key, with limit as the timeout.
func (c *Client) PutWithin(limit time.Duration, key, value string) (*pb.PutResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return c.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
}

// GetWithin reads one key, linearizably, with limit as the timeout; found reports whether it exists.
func (c *Client) GetWithin(limit time.Duration, key string) (value string, found bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte(key)})
	if err != nil || len(r.Kvs) == 0 {
		return "", false, err
	}
	return string(r.Kvs[0].Value), true, nil
}
