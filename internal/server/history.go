package server

import (
	"errors"
	"fmt"

	"quorate/internal/mvcc"
	"quorate/internal/watch"
)

// history lets the watch hub read the revisions of the store.
type history struct{ kv *mvcc.Store }

func (h history) Rev() int64        { return h.kv.PublishedRev() }
func (h history) CompactRev() int64 { return h.kv.CompactRev() }

func (h history) Scan(from int64, maxRevs, maxBytes int, fn func(watch.Event) error) (int64, error) {
	return h.kv.Records(from, maxRevs, maxBytes, func(rev mvcc.Revision, tombstone bool, kv []byte) error {
		ev, err := watch.DecodeEvent(rev.Main, rev.Sub, tombstone, kv)
		if err != nil {
			return fmt.Errorf("decode revision %d.%d: %w", rev.Main, rev.Sub, err)
		}
		return fn(ev)
	})
}

func (h history) PrevKV(key []byte, beforeMod int64) ([]byte, error) {
	v := h.kv.View()
	defer v.Close()
	kv, err := v.Get(key, beforeMod-1)
	if errors.Is(err, mvcc.ErrCompacted) {
		return nil, nil
	}
	return kv, err
}
