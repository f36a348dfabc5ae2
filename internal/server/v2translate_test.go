package server

import (
	"bytes"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/command"
	"quorate/internal/legacy/v2request"
)

// A v2 request is translated in a copy: the log, which owns the entries, stays unchanged.
func TestModernEntries(t *testing.T) {
	v2 := []byte("\x08\x07\x12\x03PUT\x1a\x0a/0/version\x22\x053.5.0")
	put := command.Encode(&pb.RequestHeader{ID: 1}, command.Put, []byte{0x0a, 1, 'k'})
	entry := func(i uint64, typ raftpb.EntryType, data []byte) *raftpb.Entry {
		return &raftpb.Entry{Type: typ.Enum(), Term: new(uint64(3)), Index: new(i), Data: data}
	}
	plain := []*raftpb.Entry{entry(1, raftpb.EntryNormal, nil), entry(2, raftpb.EntryNormal, put), entry(3, raftpb.EntryConfChange, v2)}
	if got := translated(plain, v2request.Modern); got != nil {
		t.Errorf("entries without a v2 request were copied: %v", got)
	}
	mixed := append(plain, entry(4, raftpb.EntryNormal, bytes.Clone(v2)))
	got := translated(mixed, v2request.Modern)
	if len(got) != 4 || !bytes.Equal(mixed[3].Data, v2) {
		t.Fatalf("got %v from %v", got, mixed)
	}
	for i := range 3 {
		if got[i] != mixed[i] {
			t.Errorf("entry %d was copied", i)
		}
	}
	if r, err := command.Decode(got[3].Data); err != nil || r.ClusterVersionSet.GetVer() != "3.5.0" || bytes.Equal(got[3].Data, v2) ||
		got[3].GetIndex() != 4 || got[3].GetTerm() != 3 {
		t.Errorf("got %v, %v from %v", got[3], err, r)
	}
}
