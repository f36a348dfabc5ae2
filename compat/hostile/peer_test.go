package hostile

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The peer port receives raft messages that no member sends, from an attacker who knows the cluster: most of
// them make raft panic, one produces a log that cannot be read again.
func TestForgedPeerMessages(t *testing.T) {
	t.Parallel()
	v := newVictim(t)
	resp, err := http.Get(v.PeerURL() + "/members")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	var members []struct {
		ID uint64 `json:"id"`
	}
	if err := json.Unmarshal(body, &members); err != nil || len(members) != 1 {
		t.Fatalf("%s: %v", body, err)
	}
	cluster, self := resp.Header.Get("X-Etcd-Cluster-Id"), members[0].ID
	post := func(m *raftpb.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequest("POST", v.PeerURL()+"/raft", bytes.NewReader(b))
		req.Header.Set("X-Etcd-Cluster-ID", cluster)
		req.Header.Set("X-Server-From", strconv.FormatUint(m.GetFrom(), 16))
		req.Header.Set("X-Server-Version", "3.7.3")
		req.Header.Set("X-Min-Cluster-Version", "3.0.0")
		if resp, err := http.DefaultClient.Do(req); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	message := func(typ raftpb.MessageType, term uint64) *raftpb.Message {
		return &raftpb.Message{Type: typ.Enum(), To: new(self), From: new(uint64(77)), Term: &term}
	}
	before := v.lines(t)
	change := func(typ raftpb.EntryType, data []byte) []*raftpb.Entry {
		return []*raftpb.Entry{{Type: typ.Enum(), Data: data}}
	}
	for _, ents := range [][]*raftpb.Entry{nil, change(raftpb.EntryConfChange, nil), change(raftpb.EntryConfChange, []byte{0xff}),
		change(raftpb.EntryConfChangeV2, nil), change(raftpb.EntryConfChangeV2, []byte{8, 0}), change(9, []byte("x")),
		change(raftpb.EntryNormal, nil), change(raftpb.EntryNormal, []byte{0xff, 0xff, 0xff})} {
		m := message(raftpb.MsgProp, 0)
		m.Entries = ents
		post(m)
		m.Term = new(uint64(2))
		post(m)
	}
	for term := range uint64(3) { // the member's id is 2
		for typ := range raftpb.MessageType(26) {
			if typ == raftpb.MsgProp || typ == raftpb.MsgSnap {
				continue
			}
			for _, from := range []uint64{77, self, 0, 1<<64 - 1, 1<<64 - 2} {
				m := message(typ, term)
				m.From = &from
				m.Index, m.Commit, m.LogTerm = new(uint64(1<<40)), new(uint64(1<<40)), new(uint64(1))
				m.Context = binary.LittleEndian.AppendUint64(nil, 1<<40)
				post(m)
				m.Context = []byte("short")
				post(m)
			}
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		m := message(raftpb.MessageType(r.IntN(26)), uint64(r.IntN(3)))
		m.Index, m.Commit, m.LogTerm, m.RejectHint = new(r.Uint64()), new(r.Uint64()), new(r.Uint64()), new(r.Uint64())
		m.Reject = new(r.IntN(2) == 0)
		for range r.IntN(3) {
			m.Entries = append(m.Entries, &raftpb.Entry{Type: raftpb.EntryType(r.IntN(4)).Enum(), Index: new(uint64(r.IntN(9))), Term: new(uint64(r.IntN(9))), Data: make([]byte, r.IntN(3))})
		}
		post(m)
	}
	v.survives(t, before, 400)
}
