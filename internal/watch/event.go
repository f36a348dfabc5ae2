package watch

import (
	"bytes"
	"errors"
	"fmt"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"quorate/internal/ids"
)

// Event is one change of one key. Key and KV must not change while they may be read: for
// events passed to Publish that is forever, for events of History.Scan until the callback
// returns.
type Event struct {
	Key []byte
	// KV is the encoded mvccpb.KeyValue of a put, as stored. It is not used for deletes.
	KV     []byte
	Mod    ids.Revision
	Sub    int64
	Delete bool
	// Create marks a put that creates the key, so that there is no previous value.
	Create bool
}

// DecodeEvent returns the Event for a history record: its revision, whether it is a
// tombstone, and its encoded mvccpb.KeyValue. The event aliases kv.
func DecodeEvent(mod ids.Revision, sub int64, tombstone bool, kv []byte) (Event, error) {
	ev := Event{KV: kv, Mod: mod, Sub: sub, Delete: tombstone}
	var created ids.Revision
	for b := kv; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return Event{}, fmt.Errorf("key-value tag: %w", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case num == 1 && typ == protowire.BytesType:
			v, m := protowire.ConsumeBytes(b)
			if m < 0 {
				return Event{}, fmt.Errorf("key: %w", protowire.ParseError(m))
			}
			ev.Key, n = v, m
		case num == 2 && typ == protowire.VarintType:
			v, m := protowire.ConsumeVarint(b)
			if m < 0 {
				return Event{}, fmt.Errorf("create revision: %w", protowire.ParseError(m))
			}
			created, n = ids.Revision(v), m
		default:
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return Event{}, fmt.Errorf("key-value field %d: %w", num, protowire.ParseError(n))
			}
		}
		b = b[n:]
	}
	if len(ev.Key) == 0 {
		return Event{}, errors.New("key-value without a key")
	}
	ev.Create = !tombstone && created == mod
	return ev, nil
}

// Field numbers of the messages that are encoded by hand.
const (
	eventType   = 1
	eventKV     = 2
	eventPrevKV = 3

	kvKey = 1
	kvMod = 3

	responseEvents = 11
)

// event is an Event with at least one watcher. All watchers of the key share it, and the
// first consumer that needs one of its encodings creates it.
type event struct {
	Event
	mu    sync.Mutex
	plain []byte // field 11 of a WatchResponse, without prev_kv; nil until needed
	full  []byte // the same with prev_kv; nil until needed
}

// size estimates the memory and wire size of the event.
func (e *event) size() int { return 2*len(e.Key) + len(e.KV) + eventOverhead }

const eventOverhead = 32

// clone copies an event that is valid only during a History.Scan callback.
func clone(ev Event) *event {
	if ev.Delete {
		ev.KV = nil
		ev.Key = bytes.Clone(ev.Key)
		return &event{Event: ev}
	}
	e := &event{Event: ev}
	e.plain = appendEvent(nil, &ev, nil)
	e.KV = e.plain[len(e.plain)-len(ev.KV):]
	e.Key = bytes.Clone(ev.Key)
	return e
}

// encoded returns the event as a complete field 11, with the previous value if prev is not
// nil.
func (e *event) encoded(prev func(key []byte, mod ids.Revision) []byte) []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if prev == nil || e.Create && !e.Delete {
		if e.plain == nil {
			e.plain = appendEvent(nil, &e.Event, nil)
		}
		return e.plain
	}
	if e.full == nil {
		e.full = appendEvent(nil, &e.Event, prev(e.Key, e.Mod))
	}
	return e.full
}

// appendEvent appends ev as field 11 of a WatchResponse: tag, length, Event.
func appendEvent(b []byte, ev *Event, prev []byte) []byte {
	kv := len(ev.KV)
	if ev.Delete {
		kv = protowire.SizeTag(kvKey) + protowire.SizeBytes(len(ev.Key)) +
			protowire.SizeTag(kvMod) + protowire.SizeVarint(uint64(ev.Mod))
	}
	size := protowire.SizeTag(eventKV) + protowire.SizeBytes(kv)
	if ev.Delete {
		size += protowire.SizeTag(eventType) + 1
	}
	if prev != nil {
		size += protowire.SizeTag(eventPrevKV) + protowire.SizeBytes(len(prev))
	}
	if b == nil {
		b = make([]byte, 0, protowire.SizeTag(responseEvents)+protowire.SizeBytes(size))
	}
	b = protowire.AppendTag(b, responseEvents, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	if ev.Delete {
		b = protowire.AppendTag(b, eventType, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	b = protowire.AppendTag(b, eventKV, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(kv))
	if ev.Delete {
		b = protowire.AppendTag(b, kvKey, protowire.BytesType)
		b = protowire.AppendBytes(b, ev.Key)
		b = protowire.AppendTag(b, kvMod, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(ev.Mod))
	} else {
		b = append(b, ev.KV...)
	}
	if prev != nil {
		b = protowire.AppendTag(b, eventPrevKV, protowire.BytesType)
		b = protowire.AppendBytes(b, prev)
	}
	return b
}
