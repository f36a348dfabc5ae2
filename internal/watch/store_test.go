package watch

import (
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

var errCompacted = errors.New("compacted")

// store is a history in memory. Scan and PrevKV return no more than the contract promises:
// scanned events are overwritten after the callback.
type store struct {
	mu      sync.Mutex
	rev     ids.Revision
	compact ids.Revision
	events  []Event
	live    map[string]*mvccpb.KeyValue

	scanned func() // called by Scan after reading, before it returns
	scanErr error  // returned by Scan
}

func newStore() *store { return &store{rev: 1, live: make(map[string]*mvccpb.KeyValue)} }

// op is a change: a delete if value is nil.
type op struct {
	key   string
	value *string
}

func put(key, value string) op { return op{key, &value} }
func del(key string) op        { return op{key: key} }

// apply runs a transaction and returns its events; none if nothing changed.
func (s *store) apply(ops ...op) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var evs []Event
	for _, o := range ops {
		old := s.live[o.key]
		ev := Event{Key: []byte(o.key), Mod: s.rev + 1, Sub: int64(len(evs))}
		kv := &mvccpb.KeyValue{Key: ev.Key}
		switch {
		case o.value == nil && old == nil:
			continue
		case o.value == nil:
			ev.Delete = true
			delete(s.live, o.key)
		default:
			kv.Value = []byte(*o.value)
			kv.ModRevision, kv.CreateRevision, kv.Version = int64(ev.Mod), int64(ev.Mod), 1
			if old != nil {
				kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
			}
			ev.Create = old == nil
			s.live[o.key] = kv
		}
		ev.KV = mustMarshal(kv)
		evs = append(evs, ev)
	}
	if len(evs) > 0 {
		s.rev++
		s.events = append(s.events, evs...)
	}
	return evs
}

func mustMarshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func (s *store) compactTo(rev ids.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compact = max(s.compact, rev)
}

func (s *store) Rev() ids.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}

func (s *store) CompactRev() ids.Revision {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.compact
}

func (s *store) Scan(from ids.Revision, maxRevs, maxBytes int, fn func(Event) error) (ids.Revision, error) {
	s.mu.Lock()
	compact, rev, events, scanErr := s.compact, s.rev, s.events, s.scanErr
	s.mu.Unlock()
	if scanErr != nil {
		return 0, scanErr
	}
	if from < compact {
		return 0, fmt.Errorf("revision %d: %w", from, errCompacted)
	}
	next, size := rev+1, 0
	for _, ev := range events {
		if ev.Mod < from {
			continue
		}
		if ev.Sub == 0 && (ev.Mod >= from+ids.Revision(maxRevs) || size >= maxBytes) {
			next = ev.Mod
			break
		}
		size += len(ev.KV)
		kv := append([]byte(nil), ev.KV...)
		lent, err := DecodeEvent(ev.Mod, ev.Sub, ev.Delete, kv)
		if err != nil {
			return 0, err
		}
		if err := fn(lent); err != nil {
			return 0, err
		}
		for i := range kv {
			kv[i] = 0xff
		}
	}
	if s.scanned != nil {
		s.scanned()
	}
	return next, nil
}

func (s *store) PrevKV(key []byte, beforeMod ids.Revision) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if beforeMod-1 < s.compact {
		return nil, nil
	}
	var kv []byte
	for _, ev := range s.events {
		if ev.Mod < beforeMod && string(ev.Key) == string(key) {
			kv = ev.KV
			if ev.Delete {
				kv = nil
			}
		}
	}
	return kv, nil
}
