package transport

import (
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Field numbers of raftpb.Message and raftpb.Entry.
const (
	msgType, msgTo, msgFrom, msgTerm, msgLogTerm, msgIndex = 1, 2, 3, 4, 5, 6
	msgEntries, msgCommit, msgSnapshot, msgReject          = 7, 8, 9, 10
	msgRejectHint, msgContext, msgVote                     = 11, 12, 13
	entryType, entryTerm, entryIndex, entryData            = 1, 2, 3, 4
)

func appendVarintField(b []byte, num protowire.Number, v uint64) []byte {
	b = append(b, byte(num)<<3) // all numbers here are below 16, wire type varint
	return protowire.AppendVarint(b, v)
}

func appendUint(b []byte, num protowire.Number, v *uint64) []byte {
	if v == nil {
		return b
	}
	return appendVarintField(b, num, *v)
}

func appendBytesHeader(b []byte, num protowire.Number, size int) []byte {
	b = append(b, byte(num)<<3|byte(protowire.BytesType))
	return protowire.AppendVarint(b, uint64(size))
}

func sizeUint(v *uint64) int {
	if v == nil {
		return 0
	}
	return 1 + protowire.SizeVarint(*v)
}

// sizeEntry returns the number of bytes that appendEntry appends.
func sizeEntry(e *raftpb.Entry) int {
	n := sizeUint(e.Term) + sizeUint(e.Index)
	if e.Type != nil {
		n += 1 + protowire.SizeVarint(uint64(*e.Type))
	}
	if e.Data != nil {
		n += 1 + protowire.SizeBytes(len(e.Data))
	}
	return n
}

// appendEntry appends the protobuf encoding of e: the fields that are set, in
// field order, the same bytes as proto.Marshal.
func appendEntry(b []byte, e *raftpb.Entry) []byte {
	if e.Type != nil {
		b = appendVarintField(b, entryType, uint64(*e.Type))
	}
	b = appendUint(b, entryTerm, e.Term)
	b = appendUint(b, entryIndex, e.Index)
	if e.Data != nil {
		b = appendBytesHeader(b, entryData, len(e.Data))
		b = append(b, e.Data...)
	}
	return b
}

// appendMessage appends the protobuf encoding of m, without the responses,
// which never leave the member.
func appendMessage(b []byte, m *raftpb.Message) ([]byte, error) {
	if m.Type != nil {
		b = appendVarintField(b, msgType, uint64(*m.Type))
	}
	b = appendUint(b, msgTo, m.To)
	b = appendUint(b, msgFrom, m.From)
	b = appendUint(b, msgTerm, m.Term)
	b = appendUint(b, msgLogTerm, m.LogTerm)
	b = appendUint(b, msgIndex, m.Index)
	for _, e := range m.Entries {
		b = appendBytesHeader(b, msgEntries, sizeEntry(e))
		b = appendEntry(b, e)
	}
	b = appendUint(b, msgCommit, m.Commit)
	if m.Snapshot != nil {
		b = appendBytesHeader(b, msgSnapshot, proto.Size(m.Snapshot))
		var err error
		if b, err = (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend(b, m.Snapshot); err != nil {
			return b, fmt.Errorf("encode snapshot: %w", err)
		}
	}
	if m.Reject != nil {
		b = appendVarintField(b, msgReject, protowire.EncodeBool(*m.Reject))
	}
	b = appendUint(b, msgRejectHint, m.RejectHint)
	if m.Context != nil {
		b = appendBytesHeader(b, msgContext, len(m.Context))
		b = append(b, m.Context...)
	}
	return appendUint(b, msgVote, m.Vote), nil
}

// messageSlab is a message together with the values of its pointer fields:
// one allocation instead of ten.
type messageSlab struct {
	m                                                        raftpb.Message
	typ                                                      raftpb.MessageType
	to, from, term, logTerm, index, commit, rejectHint, vote uint64
	reject                                                   bool
}

// entrySlab is the same for an entry. Entries arrive in batches, so slabs
// are allocated in runs.
type entrySlab struct {
	e           raftpb.Entry
	typ         raftpb.EntryType
	term, index uint64
}

// maxSlabRun bounds how many entries share one allocation, and so how much
// memory one live entry can retain.
const maxSlabRun = 256

// entryAlloc allocates entry slabs.
type entryAlloc struct{ run []entrySlab }

// next returns an unused slab; left is how many slabs the caller expects to
// need, including this one.
func (a *entryAlloc) next(left int) *entrySlab {
	if len(a.run) == 0 {
		a.run = make([]entrySlab, min(max(left, 1), maxSlabRun))
	}
	s := &a.run[0]
	a.run = a.run[1:]
	return s
}

// decodeMessage decodes b. The message takes ownership of b: entry data and
// context alias it.
func decodeMessage(b []byte) (*raftpb.Message, error) {
	s := new(messageSlab)
	if s.parse(b) {
		return &s.m, nil
	}
	// Unusual input (an unknown field, a repeated snapshot) or invalid input:
	// fall back to the general decoder.
	m := new(raftpb.Message)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("decode raft message: %w", err)
	}
	return m, nil
}

func decodeEntry(b []byte, s *entrySlab) (*raftpb.Entry, error) {
	if s.parse(b) {
		return &s.e, nil
	}
	e := new(raftpb.Entry)
	if err := proto.Unmarshal(b, e); err != nil {
		return nil, fmt.Errorf("decode raft entry: %w", err)
	}
	return e, nil
}

// field is one decoded tag with its value: v for a varint, p for bytes.
type field struct {
	num protowire.Number
	typ protowire.Type
	v   uint64
	p   []byte
}

// nextField consumes one field of one of the two wire types that raftpb
// uses. ok is false for any other type and for malformed bytes.
func nextField(b []byte) (f field, rest []byte, ok bool) {
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return field{}, nil, false
	}
	b = b[n:]
	f = field{num: num, typ: typ}
	switch typ {
	case protowire.VarintType:
		f.v, n = protowire.ConsumeVarint(b)
	case protowire.BytesType:
		f.p, n = protowire.ConsumeBytes(b)
	default:
		return field{}, nil, false
	}
	if n < 0 {
		return field{}, nil, false
	}
	return f, b[n:], true
}

func (s *entrySlab) parse(b []byte) bool {
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok || (f.typ == protowire.BytesType) != (f.num == entryData) {
			return false
		}
		b = rest
		switch f.num {
		case entryType:
			s.typ = raftpb.EntryType(f.v)
			s.e.Type = &s.typ
		case entryTerm:
			s.term, s.e.Term = f.v, &s.term
		case entryIndex:
			s.index, s.e.Index = f.v, &s.index
		case entryData:
			s.e.Data = f.p[:len(f.p):len(f.p)]
		default:
			return false
		}
	}
	return true
}

func (s *messageSlab) parse(b []byte) bool {
	var alloc entryAlloc
	for len(b) > 0 {
		f, rest, ok := nextField(b)
		if !ok {
			return false
		}
		b = rest
		if f.typ == protowire.BytesType {
			ok = s.setBytes(f, b, &alloc)
		} else {
			ok = s.setVarint(f)
		}
		if !ok {
			return false
		}
	}
	return true
}

func (s *messageSlab) setBytes(f field, rest []byte, alloc *entryAlloc) bool {
	switch f.num {
	case msgEntries:
		es := alloc.next(1 + len(rest)/(len(f.p)+2))
		if !es.parse(f.p) {
			return false
		}
		s.m.Entries = append(s.m.Entries, &es.e)
	case msgSnapshot:
		if s.m.Snapshot != nil {
			return false
		}
		s.m.Snapshot = new(raftpb.Snapshot)
		return proto.Unmarshal(f.p, s.m.Snapshot) == nil
	case msgContext:
		s.m.Context = f.p[:len(f.p):len(f.p)]
	default:
		return false
	}
	return true
}

func (s *messageSlab) setVarint(f field) bool {
	switch f.num {
	case msgType:
		s.typ = raftpb.MessageType(f.v)
		s.m.Type = &s.typ
	case msgTo:
		s.to, s.m.To = f.v, &s.to
	case msgFrom:
		s.from, s.m.From = f.v, &s.from
	case msgTerm:
		s.term, s.m.Term = f.v, &s.term
	case msgLogTerm:
		s.logTerm, s.m.LogTerm = f.v, &s.logTerm
	case msgIndex:
		s.index, s.m.Index = f.v, &s.index
	case msgCommit:
		s.commit, s.m.Commit = f.v, &s.commit
	case msgReject:
		s.reject = protowire.DecodeBool(f.v)
		s.m.Reject = &s.reject
	case msgRejectHint:
		s.rejectHint, s.m.RejectHint = f.v, &s.rejectHint
	case msgVote:
		s.vote, s.m.Vote = f.v, &s.vote
	default:
		return false
	}
	return true
}
