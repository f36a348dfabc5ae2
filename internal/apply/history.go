package apply

import (
	"errors"
	"fmt"

	"quorate/internal/ids"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
)

// History gives a watch hub access to the revisions of a store.
type History struct{ KV *mvcc.Store }

// Rev returns the newest revision that readers see.
func (h History) Rev() ids.Revision { return h.KV.PublishedRev() }

// CompactRev returns the revision of the newest compaction.
func (h History) CompactRev() ids.Revision { return h.KV.CompactRev() }

// Scan is Store.Records with the records as events.
func (h History) Scan(from ids.Revision, maxRevs, maxBytes int, fn func(watch.Event) error) (ids.Revision, error) {
	return h.KV.Records(from, maxRevs, maxBytes, func(rev mvcc.Revision, tombstone bool, kv []byte) error {
		ev, err := watch.DecodeEvent(rev.Main, rev.Sub, tombstone, kv)
		if err != nil {
			return fmt.Errorf("decode revision %d.%d: %w", rev.Main, rev.Sub, err)
		}
		return fn(ev)
	})
}

// PrevKV returns the record of key before revision beforeMod, nil if that is
// compacted.
func (h History) PrevKV(key []byte, beforeMod ids.Revision) ([]byte, error) {
	v := h.KV.View()
	defer v.Close()
	kv, err := v.Get(key, beforeMod-1)
	if errors.Is(err, mvcc.ErrCompacted) {
		return nil, nil
	}
	return kv, err
}
