package apply

import (
	"encoding/binary"
	"hash/fnv"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Digest returns a hash of what is actually applied for an entry. It differs between
// two members that apply different requests at one index, whether the bytes of the
// entry differ or the decoded request that one of them applies instead. It is for
// checks; apply does not use it.
func (e *Entry) Digest() uint64 {
	h := fnv.New64a()
	var head [16]byte
	binary.BigEndian.PutUint64(head[:], e.GetTerm())
	binary.BigEndian.PutUint64(head[8:], uint64(e.GetType()))
	h.Write(head[:])
	if e.GetType() != raftpb.EntryNormal || len(e.Data) == 0 {
		h.Write(e.Data)
		return h.Sum64()
	}
	req, foreign, err := e.contents()
	switch {
	case err != nil:
		h.Write(e.Data)
	case req == nil:
		h.Write(foreign.Marshal())
	default:
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
		if err != nil {
			b = e.Data // strings that are not UTF-8
		}
		h.Write(b)
	}
	return h.Sum64()
}
