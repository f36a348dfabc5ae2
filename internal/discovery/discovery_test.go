package discovery

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// fake is a register in memory. The next calls return the errors in fail.
type fake struct {
	mu      sync.Mutex
	rev     int64
	kvs     []*mvccpb.KeyValue
	fail    []error
	waiters []chan struct{}
}

func (f *fake) failing() error {
	if len(f.fail) == 0 {
		return nil
	}
	err := f.fail[0]
	f.fail = f.fail[1:]
	return err
}

func (f *fake) Get(_ context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failing(); err != nil {
		return nil, err
	}
	op := clientv3.OpGet(key, opts...)
	r := &clientv3.GetResponse{Header: &etcdserverpb.ResponseHeader{Revision: f.rev}}
	for _, kv := range f.kvs {
		if string(kv.Key) == key || len(op.RangeBytes()) > 0 && strings.HasPrefix(string(kv.Key), key) {
			r.Kvs = append(r.Kvs, kv)
		}
	}
	slices.SortFunc(r.Kvs, func(a, b *mvccpb.KeyValue) int { return strings.Compare(string(a.Key), string(b.Key)) })
	return r, nil
}

func (f *fake) Put(_ context.Context, key, val string, _ ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failing(); err != nil {
		return nil, err
	}
	f.rev++
	f.kvs = append(f.kvs, &mvccpb.KeyValue{Key: []byte(key), Value: []byte(val), CreateRevision: f.rev, ModRevision: f.rev, Version: 1})
	for _, w := range f.waiters {
		close(w)
	}
	f.waiters = nil
	return &clientv3.PutResponse{}, nil
}

func (f *fake) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	out := make(chan clientv3.WatchResponse)
	from := clientv3.OpGet(key, opts...).Rev()
	go func() {
		defer close(out)
		for {
			f.mu.Lock()
			var evs []*clientv3.Event
			for _, kv := range f.kvs {
				if kv.ModRevision >= from && strings.HasPrefix(string(kv.Key), key) {
					evs = append(evs, &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv})
				}
			}
			from = f.rev + 1
			more := make(chan struct{})
			f.waiters = append(f.waiters, more)
			f.mu.Unlock()
			if len(evs) > 0 {
				select {
				case out <- clientv3.WatchResponse{Events: evs}:
				case <-ctx.Done():
					return
				}
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

func register(size string) *fake {
	f := &fake{}
	if size != "" {
		f.Put(context.Background(), "/_etcd/registry/T/_config/size", size)
	}
	return f
}

func (f *fake) sign(id int, self string) {
	f.Put(context.Background(), fmt.Sprintf("/_etcd/registry/T/members/%x", id), self)
}

func (f *fake) join(ctx context.Context, id int, self string) (string, error) {
	j := &joining{Register: Register{Token: "T", RequestTimeout: time.Minute, Logger: zap.NewNop()}, kv: f, id: fmt.Sprintf("%x", id), told: map[string]bool{}, self: self,
		pause: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}
	return j.run(ctx)
}

// In whatever order they arrive, all founders get the same cluster, in the order of their
// registration.
func TestAllAgree(t *testing.T) {
	f := register("3")
	f.sign(0x99, "z=http://z:1") // the first, though its id is not the smallest
	var wg sync.WaitGroup
	got := make([]string, 3)
	for i, id := range []int{0x99, 0xa, 0xb} {
		wg.Go(func() {
			var err error
			if got[i], err = f.join(t.Context(), id, fmt.Sprintf("m%d=http://m%d:1", i, i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got[0] != got[1] || got[1] != got[2] || !strings.HasPrefix(got[0], "z=http://z:1,") || strings.Count(got[0], "=") != 3 {
		t.Errorf("%q", got)
	}
	if _, err := f.join(t.Context(), 0xc, "late=http://late:1"); !errors.Is(err, ErrFull) {
		t.Errorf("a fourth: %v", err)
	}
	// A founder that restarts before its log exists finds its own registration.
	if again, err := f.join(t.Context(), 0xb, "m2=http://m2:1"); err != nil || again != got[0] {
		t.Errorf("again: %q, %v", again, err)
	}
}

func TestRegisterRefuses(t *testing.T) {
	for _, tc := range []struct {
		size string
		want error
	}{{"", ErrSizeNotFound}, {"x", ErrBadSize}, {"0", ErrBadSize}, {"-1", ErrBadSize}, {"99999", ErrBadSize}} {
		if _, err := register(tc.size).join(t.Context(), 1, "a=http://a:1"); !errors.Is(err, tc.want) {
			t.Errorf("size %q: %v, want %v", tc.size, err, tc.want)
		}
	}
	down := errors.New("down")
	f := register("1")
	f.fail = slices.Repeat([]error{down}, maxRetries-1)
	if got, err := f.join(t.Context(), 1, "a=http://a:1"); err != nil || got != "a=http://a:1" {
		t.Errorf("after some failures: %q, %v", got, err)
	}
	f = register("1")
	f.fail = slices.Repeat([]error{down}, maxRetries)
	if _, err := f.join(t.Context(), 1, "a=http://a:1"); !errors.Is(err, ErrTooManyRetries) {
		t.Errorf("after too many failures: %v", err)
	}
	// Entries that are not members are skipped.
	f = register("2")
	f.Put(context.Background(), "/_etcd/registry/T/members/nothex", "x=http://x:1")
	f.sign(5, "")
	f.sign(6, "b=http://b:1")
	if got, err := f.join(t.Context(), 1, "a=http://a:1"); err != nil || got != "b=http://b:1,a=http://a:1" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestSRV(t *testing.T) {
	answer := func(ssl, plain string) func(string, string, string, string, []url.URL) ([]string, error) {
		return func(scheme, service, name, dns string, _ []url.URL) ([]string, error) {
			text := plain
			if scheme == "https" {
				text = ssl
			}
			if dns != "example.com" || !strings.HasPrefix(service, "etcd-server") || !strings.HasSuffix(service, "-x") || name != "me" {
				t.Errorf("asked for %s %s %s %s", scheme, service, name, dns)
			}
			if text == "" {
				return nil, errors.New("no such host")
			}
			return strings.Split(text, ","), nil
		}
	}
	for _, tc := range []struct{ ssl, plain, want, err string }{
		{plain: "0=http://a:1,me=http://b:1", want: "0=http://a:1,me=http://b:1"},
		{ssl: "me=https://a:1", plain: "0=http://b:1", want: "me=https://a:1,0=http://b:1"},
		{ssl: "0=https://a:1", err: `cannot find local etcd member "me" in SRV records`},
		{err: "error setting up initial cluster: no SRV records of example.com"},
	} {
		got, err := SRV{Domain: "example.com", Suffix: "x", Logger: zap.NewNop(), get: answer(tc.ssl, tc.plain)}.Founders("me", nil)
		if got != tc.want || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
	}
}
