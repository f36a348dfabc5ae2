package watch

import (
	"google.golang.org/protobuf/encoding/protowire"

	"quorate/internal/ids"
)

// InvalidID is the watch ID of responses that belong to no watcher, or to all of them.
const InvalidID = -1

// Response is a WatchResponse. Event bytes are shared with other streams and must not be
// modified.
type Response struct {
	WatchID         int64
	Revision        ids.Revision // of the header
	Created         bool
	Canceled        bool
	CompactRevision ids.Revision
	CancelReason    string
	Fragment        bool
	// Events holds each event as the complete field 11 of a WatchResponse: tag,
	// length and encoded mvccpb.Event.
	Events [][]byte
}

// Header is a response header without its revision.
type Header struct {
	ClusterID ids.Cluster
	MemberID  ids.Member
	RaftTerm  ids.Term
}

// Size returns the length of the encoded WatchResponse.
func (r *Response) Size(h Header) int {
	n := len(r.AppendHead(nil, h))
	for _, e := range r.Events {
		n += len(e)
	}
	return n
}

// AppendHead appends the encoded WatchResponse up to its events. The message is complete once
// the elements of Events follow in order.
func (r *Response) AppendHead(b []byte, h Header) []byte {
	return r.appendRest(h.appendAt(b, r.Revision))
}

// appendAt appends the header of a response at a revision.
func (h Header) appendAt(b []byte, rev ids.Revision) []byte {
	var hdr [4*11 + 1]byte
	head := hdr[:0]
	for i, v := range [...]uint64{uint64(h.ClusterID), uint64(h.MemberID), uint64(rev), uint64(h.RaftTerm)} {
		head = appendUint(head, protowire.Number(i+1), v)
	}
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	return protowire.AppendBytes(b, head)
}

// appendRest appends what is between header and events.
func (r *Response) appendRest(b []byte) []byte {
	b = appendUint(b, 2, uint64(r.WatchID))
	b = appendBool(b, 3, r.Created)
	b = appendBool(b, 4, r.Canceled)
	b = appendUint(b, 5, uint64(r.CompactRevision))
	if r.CancelReason != "" {
		b = protowire.AppendTag(b, 6, protowire.BytesType)
		b = protowire.AppendString(b, r.CancelReason)
	}
	return appendBool(b, 7, r.Fragment)
}

// AppendTo appends the whole encoded WatchResponse.
func (r *Response) AppendTo(b []byte, h Header) []byte {
	b = r.AppendHead(b, h)
	for _, e := range r.Events {
		b = append(b, e...)
	}
	return b
}

func appendUint(b []byte, num protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, num, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

func appendBool(b []byte, num protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendUint(b, num, 1)
}
