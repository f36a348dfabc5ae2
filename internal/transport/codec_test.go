package transport

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// randomMessage returns a message with any of its fields set.
func randomMessage(r *rand.Rand) *raftpb.Message {
	num := func() *uint64 {
		switch r.IntN(5) {
		case 0:
			return nil
		case 1:
			return new(uint64(0))
		case 2:
			return new(uint64(math.MaxUint64))
		}
		return new(r.Uint64() >> r.IntN(64))
	}
	data := func() []byte {
		switch r.IntN(4) {
		case 0:
			return nil
		case 1:
			return []byte{}
		}
		return bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(300))
	}
	m := &raftpb.Message{To: num(), From: num(), Term: num(), LogTerm: num(), Index: num(), Commit: num(),
		RejectHint: num(), Vote: num(), Context: data()}
	if r.IntN(4) > 0 {
		m.Type = raftpb.MessageType(r.IntN(24)).Enum()
	}
	if r.IntN(2) > 0 {
		m.Reject = new(r.IntN(2) > 0)
	}
	for range r.IntN(6) {
		e := &raftpb.Entry{Term: num(), Index: num(), Data: data()}
		if r.IntN(2) > 0 {
			e.Type = raftpb.EntryType(r.IntN(3)).Enum()
		}
		m.Entries = append(m.Entries, e)
	}
	if r.IntN(3) == 0 {
		m.Snapshot = &raftpb.Snapshot{Data: data(), Metadata: &raftpb.SnapshotMetadata{Index: num(), Term: num(),
			ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{3}}}}
	}
	return m
}

func TestCodecEqualsProtobuf(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 5000 {
		m := randomMessage(r)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := appendMessage(nil, m)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("message %d: %v\n%x\nwant\n%x (%v)", i, m, got, want, err)
		}
		back, err := decodeMessage(got)
		if err != nil || !proto.Equal(back, m) {
			t.Fatalf("message %d decoded: %v\nwant\n%v (%v)", i, back, m, err)
		}
	}
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func msgApp(term, logTerm, index, commit uint64, ents ...*raftpb.Entry) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgApp.Enum(), To: new(uint64(2)), From: new(uint64(1)), Term: &term,
		LogTerm: &logTerm, Index: &index, Commit: &commit, Entries: ents}
}

func entry(term, index uint64, data string) *raftpb.Entry {
	return &raftpb.Entry{Term: &term, Index: &index, Data: []byte(data)}
}

// The exact frames of the msgapp stream, in the order in which the encoder's
// state produces them.
func TestMsgAppFrames(t *testing.T) {
	enc := &appEncoder{}
	var stream []byte
	var msgs []*raftpb.Message
	for i, c := range []struct {
		m    *raftpb.Message
		want string
	}{
		{nil, "00"},
		// New connection: a full message.
		{msgApp(3, 2, 9, 7, entry(3, 10, "a")), `02 0000000000000017
			0803 1002 1801 2003 2802 3009 3a07 1003 180a 220161 4007`},
		// Continuation in the same term: entries and commit only.
		{msgApp(3, 3, 10, 8, entry(3, 11, "bc"), entry(3, 12, "")), `01 0000000000000002
			0000000000000008 1003 180b 22026263
			0000000000000006 1003 180c 2200
			0000000000000008`},
		{msgApp(3, 3, 12, 12), "01 0000000000000000 000000000000000c"},
		// A gap: a full message again; without entries, the state is at its index.
		{msgApp(3, 3, 10, 12), "02 000000000000000e 0803 1002 1801 2003 2803 300a 400c"},
		{msgApp(3, 3, 10, 12, entry(3, 11, "z")), "01 0000000000000001 0000000000000007 1003 180b 22017a 000000000000000c"},
		// A new term.
		{msgApp(4, 3, 11, 12), "02 000000000000000e 0803 1002 1801 2004 2803 300b 400c"},
		// What follows an entry of another term does not continue the stream: the receiver would take that entry
		// to be of the new term.
		{msgApp(4, 3, 11, 12, entry(4, 12, "y")), "02 0000000000000017 0803 1002 1801 2004 2803 300b 3a07 1004 180c 220179 400c"},
		{msgApp(4, 4, 12, 12, entry(4, 13, "")), "01 0000000000000001 0000000000000006 1004 180d 2200 000000000000000c"},
	} {
		var got []byte
		if c.m == nil {
			got = enc.heartbeat(nil)
		} else {
			var err error
			if got, err = enc.message(nil, c.m); err != nil {
				t.Fatal(err)
			}
		}
		want := unhex(strings.Join(strings.Fields(c.want), ""))
		if !bytes.Equal(got, want) {
			t.Errorf("frame %d\n%x\nwant\n%x", i, got, want)
		}
		stream, msgs = append(stream, got...), append(msgs, c.m)
	}
	dec := &appDecoder{r: bufio.NewReader(bytes.NewReader(stream)), local: 2, remote: 1}
	total := 0
	for i, want := range msgs {
		m, n, err := dec.next()
		if err != nil || (m == nil) != (want == nil) || m != nil && !proto.Equal(m, want) {
			t.Fatalf("decoded %d: %v, want %v (%v)", i, m, want, err)
		}
		total += n
	}
	if _, _, err := dec.next(); err != io.EOF || total != len(stream) {
		t.Errorf("end: %v after %d of %d bytes", err, total, len(stream))
	}
}

// Heartbeats as three releases of etcd write them, and ours.
func TestHeartbeats(t *testing.T) {
	for release, s := range map[string]string{
		"3.5": "000000000000001e 0808 1000 1800 2000 2800 3000 4000 4a0a 1208 0a02 2800 1000 1800 5000 5800",
		"3.6": "0000000000000014 0808 1000 1800 2000 2800 3000 4000 5000 5800 6800",
		"3.7": "0000000000000002 0808",
	} {
		b := unhex(s)
		m, n, err := plainDecoder{bufio.NewReader(bytes.NewReader(b))}.next()
		if m != nil || err != nil || n != len(b) {
			t.Errorf("%s: %v %v, %d bytes", release, m, err, n)
		}
	}
	if got, want := (plainEncoder{}).heartbeat(nil), unhex("0000000000000002 0808"); !bytes.Equal(got, want) {
		t.Errorf("ours is %x, want %x", got, want)
	}
}

// A 3.5 member writes every field; the meaning must not change.
func TestOlderForms(t *testing.T) {
	b := unhex("0804 1002 1801 2005 2800 3009 4000 4a0a 1208 0a02 2800 1000 1800 5000 5800")
	m, err := decodeMessage(b)
	if err != nil || m.GetType() != raftpb.MsgAppResp || m.GetIndex() != 9 || m.GetSnapshot().GetMetadata().GetIndex() != 0 {
		t.Errorf("%v %v", m, err)
	}
}

func TestStreamErrors(t *testing.T) {
	for _, c := range []struct{ name, stream, want string }{
		{"unknown frame", "03", "unknown frame type 3"},
		{"cut length", "01 0000", "unexpected EOF"},
		{"cut message", "02 0000000000000003 08", "unexpected EOF"},
		{"too many entries", "01 7fffffffffffffff", "exceeds its size limit"},
		{"entry too large", "01 0000000000000001 7fffffffffffffff", "exceeds its size limit"},
		{"false entry length", "01 0000000000000001 0000000010000000 22", "unexpected EOF"},
		{"false message length", "02 0000000010000000 22", "unexpected EOF"},
		{"message too large", "02 0000000020000001 22", "exceeds its size limit"},
		{"broken entry", "01 0000000000000001 0000000000000002 22ff", "decode raft entry"},
		{"end", "", "EOF"},
	} {
		dec := &appDecoder{r: bufio.NewReader(bytes.NewReader(unhex(c.stream)))}
		if m, _, err := dec.next(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v %v, want %s", c.name, m, err, c.want)
		}
	}
}

func TestLargeEntriesSurvive(t *testing.T) {
	enc, r := &appEncoder{term: 1}, rand.New(rand.NewPCG(3, 4))
	m := msgApp(1, 1, 0, 0)
	for i := range 600 {
		data := make([]byte, r.IntN(2000))
		if i%100 == 50 {
			data = make([]byte, 3<<20)
		}
		for j := range data {
			data[j] = byte(i + j)
		}
		m.Entries = append(m.Entries, entry(1, uint64(i+1), string(data)))
	}
	b, err := enc.message(nil, m)
	if err != nil || b[0] != frameAppEntries {
		t.Fatalf("frame %d %v", b[0], err)
	}
	dec := &appDecoder{r: bufio.NewReader(bytes.NewReader(b)), local: 2, remote: 1, term: 1}
	got, _, err := dec.next()
	if err != nil || !proto.Equal(got, m) {
		t.Fatalf("entries differ: %v", err)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		b, _ := appendMessage(nil, randomMessage(r))
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeMessage(bytes.Clone(b))
		want := new(raftpb.Message)
		wantErr := proto.Unmarshal(b, want)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, protobuf says %v", err, wantErr)
		}
		if err == nil && !proto.Equal(got, want) {
			t.Fatalf("%v, protobuf says %v", got, want)
		}
	})
}

func FuzzMsgAppStream(f *testing.F) {
	enc := &appEncoder{}
	var b []byte
	for _, m := range []*raftpb.Message{msgApp(3, 2, 9, 7, entry(3, 10, "a")), msgApp(3, 3, 10, 8, entry(3, 11, "bc"), entry(3, 12, ""))} {
		b, _ = enc.message(b, m)
		f.Add(bytes.Clone(b))
	}
	f.Add(enc.heartbeat(b))
	f.Add(unhex("01 0000000000000000")) // ends before the commit index
	f.Fuzz(func(t *testing.T, b []byte) {
		dec := &appDecoder{r: bufio.NewReader(bytes.NewReader(b)), local: 2, remote: 1}
		back := &appEncoder{}
		total := 0
		for {
			m, n, err := dec.next()
			total += n
			if total > len(b) {
				t.Fatalf("%d bytes read of %d", total, len(b))
			}
			if err != nil {
				return
			}
			if m == nil {
				continue
			}
			if _, err := back.message(nil, m); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzMessageStream(f *testing.F) {
	f.Add(unhex("0000000000000002 0808"))
	f.Add(unhex("000000000000001e 0808 1000 1800 2000 2800 3000 4000 4a0a 1208 0a02 2800 1000 1800 5000 5800"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dec := plainDecoder{bufio.NewReader(bytes.NewReader(b))}
		for {
			if _, _, err := dec.next(); err != nil {
				return
			}
		}
	})
}

func FuzzSnapshotEnvelope(f *testing.F) {
	b, _ := appendPrefixed(nil, snapMessage(1, 2, 7))
	f.Add(append(b, "database"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		_, n, err := readPrefixed(r, maxEnvelopeBytes)
		if err != nil {
			return
		}
		if n+r.Len() != len(b) {
			t.Fatalf("envelope of %d bytes leaves %d of %d", n, r.Len(), len(b))
		}
	})
}

func TestEnvelopeLimit(t *testing.T) {
	head := unhex("0000000004000001")
	if _, _, err := readPrefixed(bytes.NewReader(head), maxEnvelopeBytes); !errors.Is(err, errFrameTooLarge) {
		t.Errorf("an envelope of 64 MiB and a byte: %v", err)
	}
}

func snapMessage(from, to, index uint64) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: &from, To: &to, Term: new(uint64(2)),
		Snapshot: &raftpb.Snapshot{Data: []byte("{}"), Metadata: &raftpb.SnapshotMetadata{Index: &index, Term: new(uint64(2)),
			ConfState: &raftpb.ConfState{Voters: []uint64{from, to}}}}}
}

func benchMessage() *raftpb.Message {
	m := msgApp(1, 1, 0, 0)
	for i := range 64 {
		m.Entries = append(m.Entries, entry(1, uint64(i+1), strings.Repeat("x", 300)))
	}
	return m
}

func BenchmarkEncodeAppEntries(b *testing.B) {
	m := benchMessage()
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = (&appEncoder{term: 1}).message(buf[:0], m)
	}
}

func BenchmarkDecodeAppEntries(b *testing.B) {
	frame, _ := (&appEncoder{term: 1}).message(nil, benchMessage())
	rd := bytes.NewReader(frame)
	br := bufio.NewReaderSize(rd, streamBuffer)
	b.ReportAllocs()
	for b.Loop() {
		rd.Reset(frame)
		br.Reset(rd)
		if _, _, err := (&appDecoder{r: br, term: 1}).next(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeAppResp(b *testing.B) {
	m := &raftpb.Message{Type: raftpb.MsgAppResp.Enum(), To: new(uint64(1)), From: new(uint64(2)), Term: new(uint64(3)), Index: new(uint64(99999))}
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf, _ = plainEncoder{}.message(buf[:0], m)
	}
}

func Example_heartbeat() {
	fmt.Printf("%x\n%x\n", plainEncoder{}.heartbeat(nil), (&appEncoder{}).heartbeat(nil))
	// Output:
	// 00000000000000020808
	// 00
}
