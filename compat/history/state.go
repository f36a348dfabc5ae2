package history

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// Rev returns the revision of a linearizable read.
func Rev(t *testing.T, limit time.Duration, c *child.Client) int64 {
	t.Helper()
	var rev int64
	child.Eventually(t, limit, "a linearizable read", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
		defer cancel()
		r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("any")})
		if err == nil {
			rev = r.Header.Revision
		}
		return err
	})
	return rev
}

// EqualHashes returns the hash that all members have of the keys at a revision, once all have reached it and are
// compacted alike. Different hashes fail the test.
func EqualHashes(t *testing.T, limit time.Duration, members []*child.Client, rev int64) uint32 {
	t.Helper()
	got := make([]*pb.HashKVResponse, len(members))
	child.Eventually(t, limit, "all members are compacted alike", func() error {
		for i, c := range members {
			ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
			var err error
			got[i], err = c.Maintenance.HashKV(ctx, &pb.HashKVRequest{Revision: rev})
			cancel()
			if err != nil {
				return fmt.Errorf("member %d: %w", i, err)
			}
			if got[i].CompactRevision != got[0].CompactRevision {
				return fmt.Errorf("member %d is compacted at %d, member 0 at %d", i, got[i].CompactRevision, got[0].CompactRevision)
			}
		}
		return nil
	})
	for i := range got {
		if got[i].Hash != got[0].Hash {
			t.Errorf("HashKV at revision %d: member %d %08x, member 0 %08x", rev, i, got[i].Hash, got[0].Hash)
		}
	}
	return got[0].Hash
}

// Holds checks that a member has exactly the keys that follow from the events, and every acknowledged key that
// was written once.
func Holds(limit time.Duration, c *child.Client, rev int64, ops []Op, events []Event) error {
	want := map[string]Event{}
	for _, e := range events {
		if e.Value == "" {
			delete(want, e.Key)
		} else {
			want[e.Key] = e
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r, err := c.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
	if err != nil {
		return fmt.Errorf("read everything: %w", err)
	}
	if len(r.Kvs) != len(want) {
		return fmt.Errorf("%d keys, %d according to the events", len(r.Kvs), len(want))
	}
	has := map[string]bool{}
	for _, kv := range r.Kvs {
		has[string(kv.Key)] = true
		if e := want[string(kv.Key)]; e.Value != string(kv.Value) || e.Rev != kv.ModRevision {
			return fmt.Errorf("%s is %.40q of revision %d, its last event %.40q of %d", kv.Key, kv.Value, kv.ModRevision, e.Value, e.Rev)
		}
	}
	n := 0
	for _, o := range ops {
		if o.known && o.kind == put && o.key[0] == 'u' {
			if n++; !has[o.key] {
				return fmt.Errorf("an acknowledged write is lost: %.200v", o)
			}
		}
	}
	if n == 0 {
		return errors.New("no unique write was acknowledged")
	}
	return nil
}

// Difference describes where two watchers begin to differ.
func Difference(a, b []Event) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("event %d is %+v and %+v", i, a[i], b[i])
		}
	}
	return "one ends earlier"
}

// Verdict stops the load, waits for the watchers, and checks all records against each other and against what
// every member holds. It returns the last revision, the hash of all members at it, and the events. No other
// client may write any more.
func Verdict(t *testing.T, limit time.Duration, l *Load, watchers []*Watcher, members []*child.Client) (rev int64, hash uint32, events []Event) {
	t.Helper()
	ops := l.Stop()
	rev = Rev(t, limit, members[0])
	for i, w := range watchers {
		w.Await(t, limit, rev)
		seen, err := w.Stop()
		if err != nil {
			t.Errorf("watcher %d: %v", i, err)
		}
		if i == 0 {
			events = seen
		}
		if len(seen) != len(events) || Difference(seen, events) != "one ends earlier" {
			t.Errorf("watchers 0 and %d have seen different events (%d and %d): %s", i, len(events), len(seen), Difference(events, seen))
		}
	}
	if len(events) == 0 || events[len(events)-1].Rev != rev {
		t.Fatalf("the %d events do not end with revision %d", len(events), rev)
	}
	hash = EqualHashes(t, limit, members, rev)
	for i, m := range members {
		if err := Holds(limit, m, rev, ops, events); err != nil {
			t.Errorf("member %d: %v", i, err)
		}
	}
	if err := Revisions(ops, events); err != nil {
		t.Error(err)
	}
	if err := Linearizable(ops, events); err != nil {
		t.Error(err)
	}
	return rev, hash, events
}

// CompactBehind periodically compacts what every watcher has seen, until the load stops. around is called with
// each compaction, so that the caller can prevent one; it may be nil. The channel delivers the number of
// acknowledged compactions.
func CompactBehind(l *Load, watchers []*Watcher, around func(compact func())) <-chan int {
	done := make(chan int, 1)
	if around == nil {
		around = func(compact func()) { compact() }
	}
	l.Go(func(ctx context.Context) {
		n := 0
		for i := 0; ; i++ {
			Sleep(ctx, 2*time.Second)
			if ctx.Err() != nil {
				done <- n
				return
			}
			rev := watchers[0].Rev()
			for _, w := range watchers {
				rev = min(rev, w.Rev())
			}
			around(func() {
				ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
				defer cancel()
				if _, err := l.Member(i).Compact(ctx, &pb.CompactionRequest{Revision: max(1, rev-100)}); err == nil {
					n++
				}
			})
		}
	})
	return done
}
