// Package command encodes and decodes the data of log entries: etcd's InternalRaftRequest.
//
// In: a request with the id that its proposer assigned, or the bytes of a committed entry. Out: the bytes
// to propose, or the request to apply. Always true: the encoding is etcd's, so members of etcd can apply what
// Quorate proposes and vice versa, including the v2 requests of etcd 3.5; decoding invalid bytes returns an error
// and never panics. Decoded keys and values share memory with the entry, which is immutable.
package command

import (
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"quorate/internal/legacy/v2request"
	"quorate/internal/wire"
)

// Kind is the type of request in an entry. Its value is the field number in
// InternalRaftRequest.
type Kind protowire.Number

// The kinds with a fast path for encoding.
const (
	Put         Kind = 4
	DeleteRange Kind = 5
	Txn         Kind = 6
)

const (
	fieldID     protowire.Number = 1
	fieldHeader protowire.Number = 100
)

// ErrUnknown means that this version does not know the request in an entry. A
// member that skipped it would permanently diverge from the others.
var ErrUnknown = errors.New("command: entry holds no request known to this version")

// Encode wraps the encoded client message body (a PutRequest for Put, and so on)
// into an entry with the header h. It copies body.
func Encode(h *pb.RequestHeader, k Kind, body []byte) []byte {
	if h.Username != "" || h.AuthRevision != 0 {
		return encodeAs(h, k, body)
	}
	id := h.ID
	hdr := 1 + protowire.SizeVarint(id)
	n := protowire.SizeTag(protowire.Number(k)) + protowire.SizeBytes(len(body)) +
		protowire.SizeTag(fieldHeader) + protowire.SizeBytes(hdr)
	b := make([]byte, 0, n)
	b = protowire.AppendTag(b, protowire.Number(k), protowire.BytesType)
	b = protowire.AppendBytes(b, body)
	b = protowire.AppendTag(b, fieldHeader, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(hdr))
	b = protowire.AppendTag(b, 1, protowire.VarintType)
	return protowire.AppendVarint(b, id)
}

// encodeAs is Encode for a request with a user.
func encodeAs(h *pb.RequestHeader, k Kind, body []byte) []byte {
	hdr := protowire.AppendTag(make([]byte, 0, len(h.Username)+32), 1, protowire.VarintType)
	hdr = protowire.AppendVarint(hdr, h.ID)
	if h.Username != "" {
		hdr = protowire.AppendTag(hdr, 2, protowire.BytesType)
		hdr = protowire.AppendString(hdr, h.Username)
	}
	if h.AuthRevision != 0 {
		hdr = protowire.AppendTag(hdr, 3, protowire.VarintType)
		hdr = protowire.AppendVarint(hdr, h.AuthRevision)
	}
	b := make([]byte, 0, len(body)+len(hdr)+16)
	b = protowire.AppendTag(b, protowire.Number(k), protowire.BytesType)
	b = protowire.AppendBytes(b, body)
	b = protowire.AppendTag(b, fieldHeader, protowire.BytesType)
	return protowire.AppendBytes(b, hdr)
}

// EncodeRequest encodes any request; its header or ID must be set.
func EncodeRequest(r *pb.InternalRaftRequest) ([]byte, error) {
	b, err := proto.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode log entry: %w", err)
	}
	return b, nil
}

// ID returns the id by which the proposer waits for the request.
func ID(r *pb.InternalRaftRequest) uint64 {
	if r.ID != 0 {
		return r.ID
	}
	return r.Header.GetID()
}

// PeekID returns the id of the request in a normal entry without decoding the
// rest.
func PeekID(data []byte) (id uint64, ok bool) {
	for b := data; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, false
		}
		b = b[n:]
		switch {
		case num == fieldID && typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			return v, n > 0 && v != 0
		case num == fieldHeader && typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return 0, false
			}
			return firstVarint(v, 1)
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return 0, false
		}
		b = b[n:]
	}
	return 0, false
}

// ConfChangeID returns the id of the request in a membership entry.
func ConfChangeID(data []byte) (id uint64, ok bool) { return firstVarint(data, 1) }

// firstVarint returns the first occurrence of a varint field.
func firstVarint(b []byte, field protowire.Number) (uint64, bool) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, false
		}
		b = b[n:]
		if num == field && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			return v, n > 0 && v != 0
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return 0, false
		}
		b = b[n:]
	}
	return 0, false
}

// Decode decodes the data of a normal entry, which must not be empty. The
// result may share memory with data.
func Decode(data []byte) (*pb.InternalRaftRequest, error) {
	if r, ok, err := decodeHot(data); ok || err != nil {
		return r, err
	}
	// Try v2 first: some v2 requests are also valid as current messages, with another meaning.
	if r, ok, err := v2request.Decode(data); ok {
		return r, err
	}
	r := &pb.InternalRaftRequest{}
	if err := wire.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("decode log entry: %w", err)
	}
	if Op(r) == "unknown" && r.Range == nil && r.DowngradeVersionTest == nil {
		return nil, ErrUnknown
	}
	return r, nil
}

// decodeHot decodes the most frequent entries, those with an id or a header and
// one put, delete or transaction, without reflection. ok is false if the entry
// holds anything else.
func decodeHot(data []byte) (_ *pb.InternalRaftRequest, ok bool, err error) {
	// Allocate together what is always needed together.
	var all struct {
		req pb.InternalRaftRequest
		hdr pb.RequestHeader
		put pb.PutRequest
	}
	requests := 0
	for b := data; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, false, fmt.Errorf("decode log entry: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if num == fieldID && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return nil, false, fmt.Errorf("decode log entry: %w", protowire.ParseError(n))
			}
			all.req.ID, b = v, b[n:]
			continue
		}
		if typ != protowire.BytesType {
			return nil, false, nil
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return nil, false, fmt.Errorf("decode log entry: %w", protowire.ParseError(n))
		}
		b = b[n:]
		switch {
		case num == fieldHeader && all.req.Header == nil:
			if !decodeHeader(v, &all.hdr) {
				return nil, false, nil
			}
			all.req.Header = &all.hdr
			continue
		case num == protowire.Number(Put):
			all.req.Put = &all.put
			_, err = wire.DecodePut(v, &all.put)
		case num == protowire.Number(DeleteRange):
			all.req.DeleteRange = &pb.DeleteRangeRequest{}
			_, err = wire.DecodeDeleteRange(v, all.req.DeleteRange)
		case num == protowire.Number(Txn):
			all.req.Txn = &pb.TxnRequest{}
			_, err = wire.DecodeTxn(v, all.req.Txn)
		default:
			return nil, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("decode log entry: %w", err)
		}
		if requests++; requests > 1 {
			return nil, false, nil // leave merging repeated fields to proto
		}
	}
	return &all.req, requests == 1, nil
}

// decodeHeader decodes headers with an id, a user and an auth revision; ok is
// false for anything else. The name may hold any bytes: etcd up to 3.6 does not check strings.
func decodeHeader(b []byte, h *pb.RequestHeader) (ok bool) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if num == 2 && typ == protowire.BytesType {
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return false
			}
			h.Username, b = string(v), b[n:]
			continue
		}
		if typ != protowire.VarintType {
			return false
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch num {
		case 1:
			h.ID = v
		case 3:
			h.AuthRevision = v
		default:
			return false
		}
	}
	return true
}

// Op returns the name of the request in etcd's apply metrics.
func Op(r *pb.InternalRaftRequest) string {
	switch {
	case r.Put != nil:
		return "Put"
	case r.Txn != nil:
		return "Txn"
	case r.DeleteRange != nil:
		return "DeleteRange"
	case r.Compaction != nil:
		return "Compaction"
	case r.LeaseGrant != nil:
		return "LeaseGrant"
	case r.LeaseRevoke != nil:
		return "LeaseRevoke"
	case r.LeaseCheckpoint != nil:
		return "LeaseCheckpoint"
	case r.Alarm != nil:
		return "Alarm"
	case r.ClusterVersionSet != nil:
		return "ClusterVersionSet"
	case r.ClusterMemberAttrSet != nil:
		return "ClusterMemberAttrSet"
	case r.DowngradeInfoSet != nil:
		return "DowngradeInfoSet"
	}
	return authOp(r)
}

func authOp(r *pb.InternalRaftRequest) string {
	switch {
	case r.Authenticate != nil:
		return "Authenticate"
	case r.AuthEnable != nil:
		return "AuthEnable"
	case r.AuthDisable != nil:
		return "AuthDisable"
	case r.AuthStatus != nil:
		return "AuthStatus"
	case r.AuthUserAdd != nil:
		return "AuthUserAdd"
	case r.AuthUserDelete != nil:
		return "AuthUserDelete"
	case r.AuthUserGet != nil:
		return "AuthUserGet"
	case r.AuthUserChangePassword != nil:
		return "AuthUserChangePassword"
	case r.AuthUserGrantRole != nil:
		return "AuthUserGrantRole"
	case r.AuthUserRevokeRole != nil:
		return "AuthUserRevokeRole"
	case r.AuthUserList != nil:
		return "AuthUserList"
	case r.AuthRoleAdd != nil:
		return "AuthRoleAdd"
	case r.AuthRoleDelete != nil:
		return "AuthRoleDelete"
	case r.AuthRoleGet != nil:
		return "AuthRoleGet"
	case r.AuthRoleList != nil:
		return "AuthRoleList"
	case r.AuthRoleGrantPermission != nil:
		return "AuthRoleGrantPermission"
	case r.AuthRoleRevokePermission != nil:
		return "AuthRoleRevokePermission"
	}
	return "unknown"
}
