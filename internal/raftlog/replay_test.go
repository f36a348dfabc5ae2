package raftlog

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/ids"
)

// logBuilder writes segments record by record, as etcd may have left them.
type logBuilder struct {
	t   *testing.T
	fs  *vfs.MemFS
	crc uint32
	seg segment
	buf []byte
}

func (b *logBuilder) file(seq, index uint64) *logBuilder {
	b.flush()
	b.seg = segment{seq, ids.Index(index)}
	b.buf, b.crc = appendRecord(nil, b.crc, TypeCRC, nil)
	b.buf, b.crc = appendRecord(b.buf, b.crc, TypeMetadata, appendMetadata(nil, testMD))
	return b
}

func (b *logBuilder) flush() {
	if b.buf != nil {
		spit(b.t, b.fs, "wal/"+b.seg.name(), b.buf)
	}
}

func (b *logBuilder) mark(index, term uint64) *logBuilder {
	return b.write(SnapshotMark{Index: ids.Index(index), Term: ids.Term(term)})
}

func (b *logBuilder) alone(index, term uint64) *logBuilder {
	return b.write(SnapshotMark{Index: ids.Index(index), Term: ids.Term(term), Alone: true})
}

func (b *logBuilder) write(m SnapshotMark) *logBuilder {
	data, err := appendMark(nil, m)
	must(b.t, err)
	b.buf, b.crc = appendRecord(b.buf, b.crc, TypeSnapshot, data)
	return b
}

func (b *logBuilder) state(term, vote, commit uint64) *logBuilder {
	b.buf, b.crc = appendRecord(b.buf, b.crc, TypeState, appendHardState(nil, state(term, vote, commit)))
	return b
}

func (b *logBuilder) entries(lo, hi, term uint64) *logBuilder {
	for _, e := range run(lo, hi, term, 20) {
		b.buf, b.crc = appendEntryFrame(b.buf, b.crc, e)
	}
	return b
}

func (b *logBuilder) raw(t RecordType, data []byte) *logBuilder {
	b.buf, b.crc = appendRecord(b.buf, b.crc, t, data)
	return b
}

// TestReplay opens logs that etcd may leave behind and logs that no program
// writes.
func TestReplay(t *testing.T) {
	for _, tc := range []struct {
		name  string
		build func(b *logBuilder)
		want  string // of show, or part of the error
	}{
		{"a directory made from scratch", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).mark(700, 5).state(5, 0, 700)
		}, "701..700 t5@700 hs=5/0/700 mark=700/5[]"},
		{"snapshot received", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 9, 1).state(1, 7, 5).mark(50, 3).entries(51, 53, 3).state(3, 7, 50)
		}, "51..53 t3@50 hs=3/7/50 mark=50/3[]"},
		{"snapshot received below uncommitted entries", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 90, 1).state(1, 7, 5).mark(50, 3).state(3, 7, 50)
		}, "51..50 t3@50 hs=3/7/50 mark=50/3[]"},
		{"crash between a received snapshot and its state", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 9, 1).state(1, 7, 5).mark(50, 3)
		}, "1..9 t0@0 t1@1 hs=1/7/5 mark=0/0[]"},
		{"the same with entries that were never acknowledged", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 9, 1).state(1, 7, 5).mark(50, 3).entries(51, 52, 3)
		}, "1..9 t0@0 t1@1 hs=1/7/5 mark=0/0[]"},
		{"the same, continued", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 9, 1).state(1, 7, 5).mark(50, 3).entries(51, 52, 3).entries(10, 12, 3).state(3, 7, 10)
		}, "1..12 t0@0 t1@1 t3@10 hs=3/7/10 mark=0/0[]"},
		{"the same, received again", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 9, 1).state(1, 7, 5).mark(50, 3).mark(60, 3).state(3, 7, 60).entries(61, 61, 3)
		}, "61..61 t3@60 hs=3/7/60 mark=60/3[]"},
		{"oldest files purged", func(b *logBuilder) {
			b.file(4, 30).state(2, 7, 25).mark(20, 1).entries(30, 49, 2).mark(35, 2).state(2, 7, 40)
			b.file(5, 50).state(2, 7, 40).entries(50, 60, 2)
		}, "31..60 t2@30 hs=2/7/40 mark=35/2[]"},
		{"oldest files purged up to the mark", func(b *logBuilder) {
			b.file(4, 30).state(2, 7, 29).mark(29, 1).entries(30, 49, 2)
		}, "30..49 t1@29 t2@30 hs=2/7/29 mark=29/1[]"},
		{"remainder before a gap in the sequence", func(b *logBuilder) {
			b.file(1, 1).entries(1, 3, 1)
			b.crc = 77
			b.file(4, 30).state(2, 7, 29).mark(29, 1).entries(30, 49, 2)
		}, "30..49 t1@29 t2@30 hs=2/7/29 mark=29/1[]"},
		{"newest mark beyond the commit", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 30, 1).state(1, 7, 10).mark(10, 1).mark(20, 1)
		}, "1..30 t0@0 t1@1 hs=1/7/10 mark=10/1[]"},
		{"restored by etcd", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 3, 1).state(1, 7, 3).mark(3, 1)
		}, "4..3 t1@3 hs=1/7/3 mark=3/1[]"},
		{"restored by etcd, continued", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 3, 1).state(1, 7, 3).mark(3, 1).entries(4, 9, 2).state(2, 7, 8).mark(6, 2)
		}, "4..9 t1@3 t2@4 hs=2/7/8 mark=6/2[]"},
		{"founded, with a mark behind the founders' entries", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 3, 1).entries(4, 9, 2).state(2, 7, 8).mark(5, 2)
		}, "1..9 t0@0 t1@1 t2@4 hs=2/7/8 mark=5/2[]"},
		{"a mark that stands alone", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 9, 2).state(2, 7, 8).alone(5, 2).mark(7, 2)
		}, "6..9 t2@5 hs=2/7/8 mark=7/2[]"},
		{"a mark that stands alone, beyond the commit", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 9, 2).state(2, 7, 4).alone(5, 2)
		}, "1..9 t0@0 t2@1 hs=2/7/4 mark=0/0[]"},

		{"gap", func(b *logBuilder) { b.file(0, 0).mark(0, 0).entries(1, 3, 1).entries(5, 5, 1) }, "gap between entries: 5 after 3"},
		{"gap behind the mark", func(b *logBuilder) {
			b.file(4, 30).state(2, 7, 29).mark(20, 1).entries(30, 49, 2)
		}, "snapshot at 20, oldest entry is 30"},
		{"file missing", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 3, 1).state(1, 7, 2)
			b.crc = 77
			b.file(1, 4).entries(4, 5, 1)
		}, "checksum mismatch"},
		{"committed entry replaced", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 3, 1).state(1, 7, 2).entries(2, 2, 2)
		}, "entry 2, committed up to 2"},
		{"entry of an older term", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).entries(1, 3, 2).entries(4, 4, 1)
		}, "entry 4 of term 1 after term 2"},
		{"state of an older term", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).state(2, 0, 0).state(1, 0, 0)
		}, "state of term 1 after term 2"},
		{"mark of another term", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).mark(5, 4).state(4, 0, 5).entries(6, 8, 4).mark(5, 3)
		}, "snapshot at 5 of term 3, entry of term 4"},
		{"two metadata", func(b *logBuilder) {
			b.file(0, 0).mark(0, 0).raw(TypeMetadata, appendMetadata(nil, Metadata{1, 2}))
		}, "metadata of two logs"},
		{"no mark", func(b *logBuilder) { b.file(0, 0).entries(1, 3, 1) }, "no snapshot record up to commit 0"},
		{"no metadata", func(b *logBuilder) {
			b.buf, b.crc = appendRecord(nil, 0, TypeCRC, nil)
			b.mark(0, 0)
		}, "no metadata"},
		{"unknown type", func(b *logBuilder) { b.file(0, 0).raw(6, []byte{1}) }, "malformed record: type 6"},
		{"garbage for an entry", func(b *logBuilder) { b.file(0, 0).mark(0, 0).raw(TypeEntry, []byte{1, 2, 3}) }, "malformed record"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &logBuilder{t: t, fs: vfs.NewMem()}
			must(t, b.fs.MkdirAll("wal", 0o700))
			tc.build(b)
			b.flush()
			l, err := Open(b.fs, "wal", small)
			if err != nil {
				var ce *CorruptError
				if !errors.As(err, &ce) || !strings.Contains(err.Error(), tc.want) {
					t.Fatalf("got %v, want a CorruptError with %q", err, tc.want)
				}
				return
			}
			if got := show(l); got != tc.want {
				t.Fatalf("got  %s\nwant %s", got, tc.want)
			}
			verify(t, l, 20)
			last, _ := l.LastIndex()
			must(t, l.Append(nil, run(last+1, last+1, max(l.HardState().GetTerm(), 3), 20), true))
			want := newest(l)
			l = reopen(t, l)
			defer l.Close()
			if got := newest(l); got != want {
				t.Fatalf("continued: got %s, want %s", got, want)
			}
			if segs, _ := listSegments(b.fs, "wal"); len(consecutive(segs)) != len(segs) {
				t.Errorf("segments with a gap are left: %v", segs)
			}
		})
	}
}
