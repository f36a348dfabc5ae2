package v2request

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// fieldID is the id of an InternalRaftRequest.
const fieldID protowire.Number = 1

// fieldCarried holds, in an InternalRaftRequest of Quorate, the original entry of the v2
// API. Members of etcd skip unknown fields.
const fieldCarried protowire.Number = 51002

// fieldNoEffect is the number of the request DowngradeVersionTest, which has no effect.
const fieldNoEffect protowire.Number = 9900

// noEffectSince is the release that it names: earlier ones cannot decode it.
const noEffectSince = "3.6.0"

// carry returns a v3 request without effect that carries the v2 request data with the given
// id.
func carry(id uint64, data []byte) []byte {
	b := make([]byte, 0, len(data)+32)
	b = protowire.AppendTag(b, fieldID, protowire.VarintType)
	b = protowire.AppendVarint(b, id)
	b = protowire.AppendTag(b, fieldCarried, protowire.BytesType)
	b = protowire.AppendBytes(b, data)
	b = protowire.AppendTag(b, fieldNoEffect, protowire.BytesType)
	return protowire.AppendBytes(b, appendText(nil, 1, noEffectSince))
}

// carried returns the v2 request that carry has wrapped, nil for any other entry.
func carried(data []byte) []byte {
	num, typ, n := protowire.ConsumeTag(data)
	if n < 0 || num != fieldID || typ != protowire.VarintType {
		return nil
	}
	m := protowire.ConsumeFieldValue(num, typ, data[n:])
	if m < 0 {
		return nil
	}
	data = data[n+m:]
	if num, typ, n = protowire.ConsumeTag(data); n < 0 || num != fieldCarried || typ != protowire.BytesType {
		return nil
	}
	v, m := protowire.ConsumeBytes(data[n:])
	if m < 0 {
		return nil
	}
	return v
}

// Plain is the inverse of Modern as far as members of etcd 3.5 need it: it returns the v2
// request that an entry carries for them, and any other entry unchanged.
func Plain(data []byte) []byte {
	if v := carried(data); v != nil {
		return v
	}
	return data
}
