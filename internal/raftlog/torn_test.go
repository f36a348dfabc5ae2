package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// noise returns data in which no sector is zero.
func noise(rng *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return b[:n]
}

// loseBlocks clears each 4 KiB block of [from, to) with probability one half, except
// the one that contains from, and reports whether it has cleared any.
func loseBlocks(t *testing.T, fs vfs.FS, path string, rng *rand.Rand, from, to int64) bool {
	t.Helper()
	f, err := fs.OpenReadWrite(path, category)
	must(t, err)
	lost := false
	for b := (from + 4095) &^ 4095; b < to; b += 4096 {
		if rng.IntN(2) == 0 {
			_, err := f.WriteAt(make([]byte, min(4096, to-b)), b)
			must(t, err)
			lost = true
		}
	}
	must(t, f.Close())
	return lost
}

// A write torn by a power failure is dropped, whatever the size and data of its
// entries: it was never synced.
func TestTornLargeEntries(t *testing.T) {
	for _, size := range []int{700, 10 << 10, 100 << 10, 500 << 10, 1 << 20, 1536 << 10, 5 << 20} {
		for _, data := range []string{"noise", "zeros", "both"} {
			t.Run(fmt.Sprintf("%d bytes of %s", size, data), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(7, uint64(size)))
				for range max(2, min(20, 8<<20/size)) {
					fs := vfs.NewMem()
					l := create(t, fs, Options{NoBackground: true})
					must(t, l.Append(hardState(1, 1, 0), run(1, 1, 1, 20), true))
					at, path := l.w.off, l.w.path()
					var ents []*raftpb.Entry
					for i := range uint64(2) {
						b := make([]byte, size)
						switch data {
						case "noise":
							b = noise(rng, size)
						case "both":
							copy(b[size/3:], noise(rng, size/3))
						}
						ents = append(ents, &raftpb.Entry{Term: new(uint64(1)), Index: new(2 + i), Data: b})
					}
					must(t, l.Append(hardState(1, 1, 1), ents, false))
					end := l.w.off
					must(t, l.Close())
					lost := loseBlocks(t, fs, path, rng, at, end)
					l, err := Open(fs, "wal", Options{NoBackground: true})
					if err != nil {
						t.Fatal(err)
					}
					last, _ := l.LastIndex()
					if last < 1 || lost && data == "noise" && last > 2 {
						t.Fatalf("last entry %d", last)
					}
					must(t, l.Append(nil, run(last+1, last+1, 1, 20), true))
					must(t, l.Close())
				}
			})
		}
	}
}

// Damage in synced data is never mistaken for a torn write, whether single bytes
// or whole sectors are wrong, as long as anything written after it is left.
func TestDamageBeforeTheEnd(t *testing.T) {
	for _, size := range []int{700, 10 << 10, 1 << 20} {
		rng := rand.New(rand.NewPCG(9, uint64(size)))
		fs := vfs.NewMem()
		l := create(t, fs, Options{NoBackground: true})
		must(t, l.Append(hardState(1, 1, 0), run(1, 1, 1, 20), true))
		path := l.w.path()
		data := make([]byte, size) // the reader could see a missing sector
		copy(data, noise(rng, size/2))
		must(t, l.Append(nil, []*raftpb.Entry{{Term: new(uint64(1)), Index: new(uint64(2)), Data: data}}, true))
		at := int64(l.table.slots[1].off8) * 8
		end := at + int64(size)
		must(t, l.Append(nil, run(3, 3, 1, 20), true))
		must(t, l.Close())
		whole := slurp(t, fs, path)
		for try := range 50 {
			b := append([]byte(nil), whole...)
			if off := at + 40 + rng.Int64N(end-at-40); try%2 == 0 {
				b[off] ^= byte(1 + rng.IntN(255))
			} else {
				clear(b[off : off+min(512, end-off)])
				if string(b) == string(whole) {
					continue
				}
			}
			c := vfs.NewMem()
			must(t, c.MkdirAll("wal", 0o700))
			spit(t, c, path, b)
			_, err := Open(c, "wal", Options{NoBackground: true})
			var ce *CorruptError
			if !errors.As(err, &ce) || ce.File != path || ce.Offset != at {
				t.Fatalf("size %d, try %d: %v, want a CorruptError at offset %d", size, try, err, at)
			}
		}
	}
}

// etcd reads a log with records that say what was synced: they are checksum records
// as at the head of a file.
func TestSyncedRecordIsEtcds(t *testing.T) {
	fs := vfs.NewMem()
	l := create(t, fs, Options{NoBackground: true})
	must(t, l.Append(hardState(1, 1, 0), []*raftpb.Entry{{Term: new(uint64(1)), Index: new(uint64(1)), Data: make([]byte, 2000)}}, true))
	must(t, l.Append(nil, run(2, 2, 1, 20), true))
	must(t, l.Close())
	var types []string
	must(t, scan(fs, "wal", func(r Record, _ string, _ int64) error {
		types = append(types, r.Type.String())
		return nil
	}))
	if got, want := strings.Join(types, " "), "crc metadata snapshot crc entry state crc entry"; got != want {
		t.Errorf("records %s, want %s", got, want)
	}
}

// A log that fills its disk can still be marked and truncated, which frees space.
func TestMarkOnFullDisk(t *testing.T) {
	full := false
	fs := &hookFS{FS: vfs.NewMem()}
	fs.before = func(op, path string) (int, error) {
		if full && (op == "preallocate" || op == "open" || op == "write") {
			return 0, syscall.ENOSPC
		}
		return 0, nil
	}
	l := create(t, fs, small)
	next := ids.Index(1)
	for ; len(l.segs) < 4; next++ {
		must(t, l.Append(state(1, 7, uint64(next-1)), run(uint64(next), uint64(next), 1, 300), true))
	}
	full = true
	for ; ; next++ {
		if err := l.Append(state(1, 7, uint64(next-1)), run(uint64(next), uint64(next), 1, 300), true); errors.Is(err, ErrNoSpace) {
			break
		} else {
			must(t, err)
		}
	}
	for at := next - 5; at < next-1; at++ {
		must(t, l.SaveMark(SnapshotMark{Index: at, Term: 1, ConfState: conf(7)}))
	}
	must(t, l.Compact(next-2))
	if len(l.segs) > 2 {
		t.Errorf("%d segments are left", len(l.segs))
	}
	full = false
	must(t, l.Append(nil, run(uint64(next), uint64(next), 1, 300), true))
	verify(t, reopen(t, l), 300)
}
