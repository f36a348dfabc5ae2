package lease

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// The record of a lease is the protobuf message leasepb.Lease: ID = 1, TTL = 2,
// RemainingTTL = 3, all int64. The bytes equal those of the protobuf library.

// appendRecord appends the record of x to b.
func appendRecord(b []byte, x Lease) []byte {
	for i, v := range [...]int64{int64(x.ID), x.TTL, x.RemainingTTL} {
		if v != 0 {
			b = protowire.AppendTag(b, protowire.Number(i+1), protowire.VarintType)
			b = protowire.AppendVarint(b, uint64(v))
		}
	}
	return b
}

// decodeRecord decodes a record and checks it against its key.
func decodeRecord(key, b []byte) (Lease, error) {
	var x Lease
	if len(key) != 8 {
		return x, fmt.Errorf("key has %d bytes, want 8", len(key))
	}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return x, fmt.Errorf("field tag: %w", protowire.ParseError(n))
		}
		b = b[n:]
		if num >= 1 && num <= 3 && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return x, fmt.Errorf("field %d: %w", num, protowire.ParseError(n))
			}
			b = b[n:]
			switch num {
			case 1:
				x.ID = ID(v)
			case 2:
				x.TTL = int64(v)
			case 3:
				x.RemainingTTL = int64(v)
			}
			continue
		}
		n = protowire.ConsumeFieldValue(num, typ, b)
		if n < 0 {
			return x, fmt.Errorf("field %d: %w", num, protowire.ParseError(n))
		}
		b = b[n:]
	}
	switch {
	case x.ID == 0:
		return x, errors.New("record has no id")
	case uint64(x.ID) != binary.BigEndian.Uint64(key):
		return x, fmt.Errorf("record is of lease %x", uint64(x.ID))
	case x.TTL > MaxTTL:
		return x, fmt.Errorf("TTL of %d s is above the limit", x.TTL)
	}
	return x, nil
}
