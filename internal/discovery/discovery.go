// Package discovery finds the founders of a new cluster that do not know each other yet,
// and the members of a running cluster for the proxies in front of it.
//
// In: a register in another etcd cluster (v3 discovery, or v2 discovery through HTTP) or a
// DNS domain with SRV records; the name and the peer URLs of this member. Out: the initial
// cluster, in the form of --initial-cluster, or client endpoints. Always true: all founders
// that use one register get the same answer, because the order of registration decides and
// each entry is written once.
package discovery

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/ids"
)

// Errors of a register, in etcd's words.
var (
	ErrBadSize        = errors.New("discovery: size key is bad")
	ErrSizeNotFound   = errors.New("discovery: size key not found")
	ErrFull           = errors.New("discovery: cluster is full")
	ErrTooManyRetries = errors.New("discovery: too many retries")
)

// Keys of the register.
const (
	registry   = "/_etcd/registry"
	sizeKey    = "_config/size"
	membersDir = "members/"
)

const (
	// maxMembers bounds the size of a register; a larger size is rejected as a mistake.
	maxMembers = 1 << 10
	// maxRetries bounds the attempts at one request; the pause between them doubles up to
	// maxPause.
	maxRetries = 10
	maxPause   = 30 * time.Second
)

// Register is where founders register, and how to reach it.
type Register struct {
	Token     string // identifies the cluster to bootstrap
	Endpoints []string

	DialTimeout, RequestTimeout     time.Duration
	KeepAliveTime, KeepAliveTimeout time.Duration
	TLS                             *tls.Config // nil is plain text
	Username, Password              string
	Logger                          *zap.Logger
}

// store is the part of clientv3.Client that Join needs.
type store interface {
	Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error)
	Put(ctx context.Context, key, val string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error)
	Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan
}

// Join registers member id with its part of the initial cluster (name=url,...), waits until
// as many members have registered as the register asks for, and returns the initial
// cluster. It waits for others until ctx ends; a failing request is tried up to ten times.
func (r Register) Join(ctx context.Context, id ids.Member, self string) (string, error) {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: r.Endpoints, TLS: r.TLS, Username: r.Username, Password: r.Password,
		DialTimeout: r.DialTimeout, DialKeepAliveTime: r.KeepAliveTime, DialKeepAliveTimeout: r.KeepAliveTimeout,
		Logger: zap.NewNop(),
	})
	if err != nil {
		return "", fmt.Errorf("--discovery-endpoints %s: %w", strings.Join(r.Endpoints, ","), err)
	}
	defer cli.Close()
	j := &joining{Register: r, kv: cli, id: id.String(), told: map[string]bool{}, self: self, pause: pause}
	cluster, err := j.run(ctx)
	if err != nil {
		r.Logger.Error("discovery failed to join cluster", zap.String("cluster", cluster), zap.Error(err))
		return "", err
	}
	r.Logger.Info("discovery joined cluster successfully", zap.String("cluster", cluster))
	return cluster, nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := clock.NewTimer(clock.System, d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// joining is the state of one call of Join.
type joining struct {
	Register
	kv    store
	id    string          // hexadecimal, as in the key
	told  map[string]bool // keys of entries already logged
	self  string
	pause func(context.Context, time.Duration) error
}

func (j *joining) key(parts ...string) string {
	return strings.Join(append([]string{registry, j.Token}, parts...), "/")
}

func byCreation(a, b signed) int { return cmp.Compare(a.created, b.created) }

// signed is a registered member.
type signed struct {
	id, peers string
	created   int64
}

func (j *joining) run(ctx context.Context) (string, error) {
	size, members, _, err := j.look(ctx)
	if err != nil {
		return "", err
	}
	if !has(members, j.id) {
		if len(members) >= size {
			return "", ErrFull
		}
		if err := j.retry(ctx, "register", func(ctx context.Context) error {
			_, err := j.kv.Put(ctx, j.key("members", j.id), j.self)
			return err
		}); err != nil {
			return "", err
		}
		j.Logger.Info("register member itself successfully", zap.String("memberKey", j.key("members", j.id)), zap.String("memberInfo", j.self))
	}
	size, members, rev, err := j.look(ctx)
	if err != nil {
		return "", err
	}
	if members, err = j.await(ctx, members, size, rev); err != nil {
		return "", err
	}
	members = members[:size]
	if !has(members, j.id) {
		return "", ErrFull // other members were faster
	}
	peers := make([]string, len(members))
	for i, m := range members {
		peers[i] = m.peers
	}
	return strings.Join(peers, ","), nil
}

func has(members []signed, id string) bool {
	return slices.ContainsFunc(members, func(m signed) bool { return m.id == id })
}

// look reads the size of the cluster, then the registered members.
func (j *joining) look(ctx context.Context) (size int, members []signed, rev int64, err error) {
	err = j.retry(ctx, "look into", func(ctx context.Context) error {
		resp, err := j.kv.Get(ctx, j.key(sizeKey))
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return ErrSizeNotFound
		}
		if size, err = strconv.Atoi(string(resp.Kvs[0].Value)); err != nil || size <= 0 || size > maxMembers {
			return fmt.Errorf("%w: %q", ErrBadSize, resp.Kvs[0].Value)
		}
		list, err := j.kv.Get(ctx, j.key(membersDir), clientv3.WithPrefix(), clientv3.WithLimit(4*maxMembers))
		if err != nil {
			return err
		}
		members, rev = nil, list.Header.Revision
		for _, kv := range list.Kvs {
			members = j.add(members, string(kv.Key), string(kv.Value), kv.CreateRevision)
		}
		return nil
	})
	return size, members, rev, err
}

// add inserts an entry in the order of creation. Entries that no member can have written
// are skipped, by all founders alike.
func (j *joining) add(members []signed, key, value string, created int64) []signed {
	id := strings.TrimPrefix(key, j.key(membersDir))
	if _, err := strconv.ParseUint(id, 16, 64); err != nil || value == "" {
		j.Logger.Warn("skipped an entry in the discovery service that is not a member", zap.String("key", key), zap.String("value", value))
		return members
	}
	if has(members, id) {
		return members // written again: it keeps the place of its creation
	}
	if !j.told[id] {
		j.told[id] = true
		j.Logger.Info("found peer from discovery service", zap.String("memberKey", key), zap.String("memberInfo", value))
	}
	members = append(members, signed{id, value, created})
	slices.SortStableFunc(members, byCreation)
	return members
}

// await watches the register from rev on until size members have registered.
func (j *joining) await(ctx context.Context, members []signed, size int, rev int64) ([]signed, error) {
	for len(members) < size {
		j.Logger.Info("waiting for peers from discovery service", zap.Int("clusterSize", size), zap.Int("found-peers", len(members)))
		watching, cancel := context.WithCancel(ctx)
		for resp := range j.kv.Watch(watching, j.key(membersDir), clientv3.WithPrefix(), clientv3.WithRev(rev+1)) {
			for _, ev := range resp.Events {
				if ev.IsCreate() {
					members = j.add(members, string(ev.Kv.Key), string(ev.Kv.Value), ev.Kv.CreateRevision)
				}
			}
			if len(members) >= size {
				break
			}
		}
		cancel()
		if len(members) >= size {
			break
		}
		// The watch has ended: read the register again.
		if err := j.pause(ctx, time.Second); err != nil {
			return nil, fmt.Errorf("discovery: wait for %d more members: %w", size-len(members), err)
		}
		var err error
		if _, members, rev, err = j.look(ctx); err != nil {
			return nil, err
		}
	}
	j.Logger.Info("found all needed peers from discovery service", zap.Int("clusterSize", size), zap.Int("found-peers", len(members)))
	return members, nil
}

// retry repeats one request until it succeeds or fails with a permanent error.
func (j *joining) retry(ctx context.Context, what string, f func(context.Context) error) error {
	wait := time.Second
	for range maxRetries {
		call, cancel := context.WithTimeout(ctx, max(j.RequestTimeout, time.Millisecond))
		err := f(call)
		cancel()
		if err == nil || errors.Is(err, ErrSizeNotFound) || errors.Is(err, ErrBadSize) {
			return err
		}
		j.Logger.Warn("retry connecting to discovery service", zap.String("reason", what), zap.Strings("endpoints", j.Endpoints), zap.Error(err), zap.Duration("backoff", wait))
		if err := j.pause(ctx, wait); err != nil {
			return fmt.Errorf("%s the discovery service: %w", what, err)
		}
		wait = min(2*wait, maxPause)
	}
	return ErrTooManyRetries
}
