package apply

import (
	"encoding/binary"
	"hash/fnv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/command"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2state"
)

// contents returns the request of a normal entry that is not empty: the one that the
// caller has decoded, or that of the entry's bytes.
func (e *Entry) contents() (req *pb.InternalRaftRequest, v2 *v2request.Request, err error) {
	if e.Req != nil || e.V2 != nil {
		return e.Req, e.V2, nil
	}
	if v2, _, err = v2request.Parse(e.Data); err != nil {
		return nil, nil, err
	}
	if v2 != nil && v2state.Takes(v2) {
		return nil, v2, nil
	}
	req, err = command.Decode(e.Data)
	return req, nil, err
}

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
	req, v2, err := e.contents()
	switch {
	case err != nil:
		h.Write(e.Data)
	case req == nil:
		h.Write(v2.Marshal())
	default:
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
		if err != nil {
			b = []byte(err.Error())
		}
		h.Write(b)
	}
	return h.Sum64()
}
