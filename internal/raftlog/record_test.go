package raftlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/ids"
)

// unhex decodes hex with blanks.
func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	must(t, err)
	return b
}

// TestBytes compares whole frames with bytes written by etcd 3.7.
func TestBytes(t *testing.T) {
	conf := &raftpb.Entry{
		Type: raftpb.EntryConfChange.Enum(), Term: new(uint64(1)), Index: new(uint64(1)),
		Data: unhex(t, "1000 18cdd2918bd2b881cf8e01 22087b226964223a317d"),
	}
	var b []byte
	var crc uint32
	b, crc = appendRecord(b, crc, TypeCRC, nil)
	b, crc = appendRecord(b, crc, TypeMetadata, appendMetadata(nil, testMD))
	mark, err := appendMark(nil, SnapshotMark{})
	must(t, err)
	b, crc = appendRecord(b, crc, TypeSnapshot, mark)
	b, crc = appendEntryFrame(b, crc, conf)
	b, crc = appendRecord(b, crc, TypeState, appendHardState(nil, state(1, uint64(testMD.NodeID), 1)))
	b, crc = appendEntryFrame(b, crc, &raftpb.Entry{Term: new(uint64(2)), Index: new(uint64(2))})
	want := unhex(t, `
		0400000000000084 0804 1000 00000000
		2000000000000000 0801 10bb81c7fc05 1a16 08cdd2918bd2b881cf8e01 10b298eaf1948386fccd01
		0e00000000000082 0805 1094bbc7ed0e 1a04 08001000 0000
		2900000000000087 0802 10e8fff4a40b 1a1f 0801 1001 1801 2217 1000 18cdd2918bd2b881cf8e01 22087b226964223a317d 00000000000000
		1900000000000087 0803 108ca3a9b70b 1a0f 0801 10cdd2918bd2b881cf8e01 1801 00000000000000
		0e00000000000082 0802 10b6cff2ab03 1a04 1002 1802 0000`)
	if !bytes.Equal(b, want) {
		t.Errorf("got\n%xwant\n%x", b, want)
	}
	real, err := os.ReadFile("testdata/etcd-3.7.3/0000000000000000-0000000000000000.wal")
	must(t, err)
	if !bytes.HasPrefix(real, want) {
		t.Errorf("etcd's file begins with other bytes:\n%x", real[:len(want)])
	}
	if want := uint32(0x357ca7b6); crc != want {
		t.Errorf("running checksum %#x, want %#x", crc, want)
	}
}

// TestEntryEncoding compares the hand-written encoder with the generated one.
func TestEntryEncoding(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	num := func() *uint64 {
		if rng.IntN(4) == 0 {
			return nil
		}
		return new(rng.Uint64() >> rng.IntN(64))
	}
	for range 2000 {
		e := &raftpb.Entry{Term: num(), Index: num()}
		if rng.IntN(2) == 0 {
			e.Type = raftpb.EntryType(rng.IntN(3)).Enum()
		}
		if rng.IntN(4) > 0 {
			e.Data = bytes.Repeat([]byte{'d'}, rng.IntN(300))
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(e)
		must(t, err)
		frame, crc := appendEntryFrame([]byte("before"), 7, e)
		frame = frame[len("before"):]
		n, pad, ok := splitLength(binary.LittleEndian.Uint64(frame))
		if !ok || frameHeader+n+pad != int64(len(frame)) {
			t.Fatalf("frame of %d bytes says %d+%d", len(frame), n, pad)
		}
		next, r, err := checkRecord(frame[frameHeader:][:n], 7)
		must(t, err)
		if r.Type != TypeEntry || !bytes.Equal(r.Data, want) || next != crc || crc != crc32.Update(7, castagnoli, want) {
			t.Fatalf("entry %v:\ngot  %x\nwant %x", e, r.Data, want)
		}
		if got := entrySize(e); got != len(want) {
			t.Fatalf("entrySize(%v) = %d, want %d", e, got, len(want))
		}
		if len(frame) > entrySize(e)+recordOverhead {
			t.Fatalf("frame of %d bytes is beyond the bound of %d", len(frame), entrySize(e)+recordOverhead)
		}
	}
}

// TestTypeFlip ensures that no record is accepted as one of another type:
// the checksum does not cover the type.
func TestTypeFlip(t *testing.T) {
	cs, err := appendMark(nil, SnapshotMark{Index: 2, Term: 2, ConfState: conf(1, 2)})
	must(t, err)
	data := map[RecordType][][]byte{
		TypeMetadata: {appendMetadata(nil, testMD)},
		TypeEntry: {
			entryHead(nil, &raftpb.Entry{Term: new(uint64(2)), Index: new(uint64(2))}),
			unhex(t, "0800 1002 1802"),            // empty entry of 3.5
			append(unhex(t, "1002 1802 2201"), 1), // with data
		},
		TypeState:    {appendHardState(nil, state(2, 0, 2)), appendHardState(nil, state(1, uint64(testMD.NodeID), 1))},
		TypeSnapshot: {cs},
	}
	for from, all := range data {
		for _, d := range all {
			for to := TypeMetadata; to <= TypeSnapshot; to++ {
				if to == from || from == TypeMetadata && to == TypeSnapshot {
					continue // a mark far beyond the commit index is void, and the metadata is then missing
				}
				var err error
				switch to {
				case TypeMetadata:
					_, err = decodeMetadata(d)
					if from == TypeSnapshot || err != nil {
						continue // contradicts the first metadata record
					}
				case TypeEntry:
					_, err = decodeEntry(d)
				case TypeState:
					_, err = decodeHardState(d)
				case TypeCRC:
					_, err = decodeRecord(append([]byte{0x08, 4, 0x10, 0, 0x1a, byte(len(d))}, d...))
				case TypeSnapshot:
					_, err = decodeMark(d)
				}
				if !errors.Is(err, errEncoding) {
					t.Errorf("%v %x passes for %v: error %v", from, d, to, err)
				}
			}
		}
	}
}

func TestParseName(t *testing.T) {
	s := segment{seq: 10, index: 0xabcdef}
	if got, ok := parseName(s.name()); !ok || got != s || s.name() != "000000000000000a-0000000000abcdef.wal" {
		t.Errorf("parseName(%q) = %v, %v", s.name(), got, ok)
	}
	for _, n := range []string{"0.tmp", "x.wal", "000000000000000a-0000000000abcdef.wal.broken",
		"00000000000000000-000000000abcdef.wal", "000000000000000g-0000000000abcdef.wal", "+00000000000000a-0000000000abcdef.wal"} {
		if s, ok := parseName(n); ok {
			t.Errorf("parseName(%q) = %v, want refused", n, s)
		}
	}
}

// copyToMem copies a directory of the disk to wal/ on a memory disk.
func copyToMem(t *testing.T, dir string) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewMem()
	must(t, fs.MkdirAll("wal", 0o700))
	files, err := filepath.Glob(dir + "/*.wal")
	must(t, err)
	for _, f := range files {
		must(t, vfs.CopyAcrossFS(vfs.Default, f, fs, "wal/"+filepath.Base(f)))
	}
	return fs
}

// TestEtcdFiles opens logs that three releases of etcd wrote with the same
// calls, and continues them.
func TestEtcdFiles(t *testing.T) {
	for _, release := range []string{"3.5.33", "3.6.14", "3.7.3"} {
		t.Run(release, func(t *testing.T) {
			fs := copyToMem(t, "testdata/etcd-"+release)
			l := open(t, fs, small)
			want := "1..26 t0@0 t1@1 t2@2 t3@25 hs=3/0/24 mark=15/2[10276657743932975437]"
			if got := show(l); got != want {
				t.Fatalf("got  %s\nwant %s", got, want)
			}
			if l.Metadata() != testMD {
				t.Errorf("Metadata() = %v, want %v", l.Metadata(), testMD)
			}
			ents, err := l.Entries(1, 27, 1<<20)
			must(t, err)
			var cc raftpb.ConfChange
			must(t, proto.Unmarshal(ents[0].Data, &cc))
			if ents[0].GetType() != raftpb.EntryConfChange || ids.Member(cc.GetNodeId()) != testMD.NodeID {
				t.Errorf("first entry is %v", ents[0])
			}
			for _, e := range ents[2:] {
				if e.GetType() != raftpb.EntryNormal || string(e.Data) != string(payload(e.GetIndex(), e.GetTerm(), 24)) {
					t.Errorf("entry %d: %q", e.GetIndex(), e.Data)
				}
			}
			must(t, l.Append(state(4, 0, 25), run(26, 60, 4, 24), true))
			must(t, l.Close())
			o := small
			o.CatchUpEntries = 3
			l = open(t, fs, o)
			want = "13..60 t2@12 t3@25 t4@26 hs=4/0/25 mark=15/2[10276657743932975437]"
			if got := show(l); got != want {
				t.Fatalf("continued: got  %s\nwant %s", got, want)
			}
			verify(t, l, 24)
			must(t, l.SaveMark(SnapshotMark{Index: 25, Term: 3, ConfState: conf(7)}))
			must(t, l.Compact(25))
			l = reopen(t, l)
			if first, _ := l.FirstIndex(); first != 23 && first != 24 {
				t.Errorf("FirstIndex() = %d after compaction and restart, want the second entry of a file near 25", first)
			}
			verify(t, l, 24)
		})
	}
}

func TestScan(t *testing.T) {
	counts := map[RecordType]int{}
	files := map[string]bool{}
	err := scan(vfs.Default, "testdata/etcd-3.7.3", func(r Record, file string, off int64) error {
		counts[r.Type]++
		files[file] = true
		return nil
	})
	must(t, err)
	want := map[RecordType]int{TypeMetadata: 5, TypeEntry: 32, TypeState: 36, TypeCRC: 5, TypeSnapshot: 2}
	for typ, n := range want {
		if counts[typ] != n {
			t.Errorf("%d records of %v, want %d", counts[typ], typ, n)
		}
	}
	if len(files) != 5 {
		t.Errorf("records of %d files, want 5", len(files))
	}

	fs := copyToMem(t, "testdata/etcd-3.7.3")
	last := "wal/0000000000000004-000000000000001e.wal"
	cutFile(t, fs, last, 100)
	if err := scan(fs, "wal", func(Record, string, int64) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut file: %v, want ErrUnexpectedEOF", err)
	}
}

// cutFile keeps the first n bytes of a file.
func cutFile(t *testing.T, fs vfs.FS, path string, n int) {
	t.Helper()
	b := slurp(t, fs, path)
	spit(t, fs, path, b[:n])
}

func slurp(t *testing.T, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	must(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	must(t, err)
	return b
}

func spit(t *testing.T, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, category)
	must(t, err)
	_, err = f.Write(bytes.Clone(b)) // a vfs.File may modify its argument
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

// FuzzDecodeRecord feeds bytes to every decoder of stored bytes. None may
// panic, and whatever our encoders can express must round trip.
func FuzzDecodeRecord(f *testing.F) {
	for _, s := range []struct {
		t RecordType
		d []byte
	}{{TypeCRC, nil}, {TypeMetadata, appendMetadata(nil, testMD)}, {TypeState, appendHardState(nil, state(1, 2, 3))},
		{TypeEntry, entryHead(nil, entry(5, 3, 0))}, {TypeSnapshot, []byte("\x08\x05\x10\x01\x1a\x02\x08\x07")}} {
		b, _ := appendRecord(nil, 0, s.t, s.d)
		f.Add(b, uint32(0))
	}
	b, _ := appendEntryFrame(nil, 99, entry(5, 3, 40))
	f.Add(b, uint32(99))
	f.Fuzz(func(t *testing.T, b []byte, crc uint32) {
		end, _, err := scanSegment(vfs.NewMemFile(b), "f", int64(len(b)), true, crc, func(off int64, before uint32, r Record) error {
			_, err := decodeEntry(r.Data)
			return err
		})
		if end < 0 || end > int64(len(b)) || end%8 != 0 {
			t.Fatalf("end %d of %d bytes, error %v", end, len(b), err)
		}
		r := replay{table: table{first: 1}}
		_, _, _ = scanSegment(vfs.NewMemFile(b), "f", int64(len(b)), true, crc, r.record)
		_ = r.finish()
		rec, err := decodeRecord(b)
		if err != nil {
			return
		}
		if e, err := decodeEntry(rec.Data); err == nil {
			m := newEntryBatch(1).add(e)
			again, err := decodeEntry(append(entryHead(nil, m), m.Data...))
			if err != nil || again.index != e.index || again.term != e.term || again.typ != e.typ || !bytes.Equal(again.data, e.data) {
				t.Fatalf("entry %v comes back as %v, %v", e, again, err)
			}
		}
		if hs, err := decodeHardState(rec.Data); err == nil {
			again, err := decodeHardState(appendHardState(nil, hs))
			if err != nil || !sameHardState(hs, again) {
				t.Fatalf("state %v comes back as %v, %v", hs, again, err)
			}
		}
		_, _ = decodeMark(rec.Data)
		_, _ = decodeMetadata(rec.Data)
	})
}
