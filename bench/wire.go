package main

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// The generator shares two cores with the server it measures, so requests are encoded by hand and answers are
// decoded only as far as a row needs.

const (
	methodRange   = "/etcdserverpb.KV/Range"
	methodPut     = "/etcdserverpb.KV/Put"
	methodStatus  = "/etcdserverpb.Maintenance/Status"
	methodTxn     = "/etcdserverpb.KV/Txn"
	methodCompact = "/etcdserverpb.KV/Compact"
	methodWatch   = "/etcdserverpb.Watch/Watch"
	methodDefrag  = "/etcdserverpb.Maintenance/Defragment"

	methodGrant     = "/etcdserverpb.Lease/LeaseGrant"
	methodKeepalive = "/etcdserverpb.Lease/LeaseKeepAlive"
)

// reply receives an answer. The bytes are retained only if keep is set.
type reply struct {
	keep bool
	size int
	body []byte
}

func appendBytes(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func appendInt(b []byte, n protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), uint64(v))
}

func putRequest(b, key, value []byte) []byte {
	return appendBytes(appendBytes(b, 1, key), 2, value)
}

// rangeOptions are the fields of a RangeRequest that the rows use.
type rangeOptions struct {
	end          []byte
	limit        int64
	serializable bool
	countOnly    bool
}

func rangeRequest(b, key []byte, o rangeOptions) []byte {
	b = appendBytes(b, 1, key)
	if o.end != nil {
		b = appendBytes(b, 2, o.end)
	}
	b = appendInt(b, 3, o.limit)
	if o.serializable {
		b = appendInt(b, 7, 1)
	}
	if o.countOnly {
		b = appendInt(b, 9, 1)
	}
	return b
}

// txnPuts is a TxnRequest whose success list holds the puts.
func txnPuts(puts [][]byte) []byte {
	var b, op []byte
	for _, p := range puts {
		op = appendBytes(op[:0], 2, p) // RequestOp.request_put
		b = appendBytes(b, 2, op)      // TxnRequest.success
	}
	return b
}

// txnUpdate is a TxnRequest that replaces the value of a key that exists, and reads it otherwise.
func txnUpdate(b, key, value []byte) []byte {
	b = appendBytes(b, 1, appendBytes(appendInt(appendInt(nil, 1, 1), 2, 2), 3, key)) // mod_revision > 0
	b = appendBytes(b, 2, appendBytes(nil, 2, putRequest(nil, key, value)))
	return appendBytes(b, 3, appendBytes(nil, 1, rangeRequest(nil, key, rangeOptions{})))
}

func compactRequest(rev int64) []byte { return appendInt(appendInt(nil, 1, rev), 2, 1) }

func watchCreate(key []byte) []byte {
	return appendBytes(nil, 1, appendBytes(nil, 1, key)) // WatchRequest.create_request
}

// walk calls f for every field of a message; f gets the raw value.
func walk(b []byte, f func(n protowire.Number, t protowire.Type, v []byte)) error {
	for len(b) > 0 {
		n, t, tagLen := protowire.ConsumeTag(b)
		if tagLen < 0 {
			return protowire.ParseError(tagLen)
		}
		b = b[tagLen:]
		valLen := protowire.ConsumeFieldValue(n, t, b)
		if valLen < 0 {
			return protowire.ParseError(valLen)
		}
		f(n, t, b[:valLen])
		b = b[valLen:]
	}
	return nil
}

// intField reads the varint at a path of field numbers; 0 when it is absent.
func intField(b []byte, path ...protowire.Number) (int64, error) {
	var found []byte
	err := walk(b, func(n protowire.Number, _ protowire.Type, v []byte) {
		if n == path[0] {
			found = v
		}
	})
	if err != nil || found == nil {
		return 0, err
	}
	if len(path) > 1 {
		inner, n := protowire.ConsumeBytes(found)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		return intField(inner, path[1:]...)
	}
	v, n := protowire.ConsumeVarint(found)
	if n < 0 {
		return 0, protowire.ParseError(n)
	}
	return int64(v), nil
}

// countEvents counts the events of a WatchResponse, and reports whether it is a created response.
func countEvents(b []byte) (events int, created bool, err error) {
	err = walk(b, func(n protowire.Number, _ protowire.Type, _ []byte) {
		switch n {
		case 11:
			events++
		case 3:
			created = true
		}
	})
	return events, created, err
}

const keySize = 32

// keyAt is the i-th key of a data set: 32 bytes, in key order as i rises.
func keyAt(b []byte, prefix string, i int) []byte {
	b = append(append(b[:0], prefix...), '/')
	for range keySize - len(b) {
		b = append(b, '0')
	}
	for at := keySize - 1; i > 0; at-- {
		b[at] = byte('0' + i%10)
		i /= 10
	}
	return b
}

const valueAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// valueAt fills b with text that does not repeat: compression gains as much as it would with base64. seed keeps
// both sides equal.
func valueAt(b []byte, seed uint64) []byte {
	var word [8]byte
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range b {
		if i%8 == 0 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			binary.LittleEndian.PutUint64(word[:], x)
		}
		b[i] = valueAlphabet[word[i%8]&63]
	}
	return b
}
