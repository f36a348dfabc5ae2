package raftlog

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// Every single changed byte of the last records is detected, even if the data
// contains so many zeros that the write looks torn, and whether or not the
// file extends beyond the last record.
func TestChangedByteAtTheEnd(t *testing.T) {
	for _, tt := range []struct {
		size  int
		extra int // zeros after the records
	}{{0, 0}, {0, 4096}, {100, 4096}, {248, 4096}, {600, 0}, {3000, 8192}} {
		t.Run(fmt.Sprintf("entries of %d bytes, %d behind", tt.size, tt.extra), func(t *testing.T) {
			fs := vfs.NewMem()
			l := create(t, fs, small)
			var ents []*raftpb.Entry
			for i := uint64(1); i <= 3; i++ {
				ents = append(ents, &raftpb.Entry{Term: new(uint64(1)), Index: new(i), Data: make([]byte, tt.size)})
			}
			must(t, l.Append(state(1, 7, 2), ents, true))
			must(t, l.Close())
			path := "wal/0000000000000000-0000000000000000.wal"
			b := []byte(strings.TrimRight(string(slurp(t, fs, path)), "\x00"))
			for len(b)%8 != 0 {
				b = append(b, 0)
			}
			used := len(b)
			b = append(b, make([]byte, tt.extra)...)
			rng := rand.New(rand.NewPCG(1, uint64(tt.size)))
			found := 0
			for at := 0; at < used; at++ {
				x := byte(1 + rng.IntN(255))
				if rng.IntN(2) == 0 {
					x = b[at] // a byte that becomes zero
				}
				if x == 0 {
					continue
				}
				c := vfs.NewMem()
				must(t, c.MkdirAll("wal", 0o700))
				b[at] ^= x
				spit(t, c, path, b)
				b[at] ^= x
				l, err := Open(c, "wal", small)
				if err != nil {
					var ce *CorruptError
					if !errors.As(err, &ce) || ce.File != path {
						t.Fatalf("byte %d: %v", at, err)
					}
					found++
					continue
				}
				last, _ := l.LastIndex()
				if last != 3 || l.HardState().GetCommit() != 2 || l.HardState().GetVote() != 7 {
					t.Fatalf("byte %d of %d changed by %#x: %d entries, state %v", at, used, x, last, l.HardState())
				}
				must(t, l.Close())
			}
			if found == 0 {
				t.Error("nothing was found")
			}
		})
	}
}

// A torn write is never mistaken for a changed byte.
func TestTornIsNotChanged(t *testing.T) {
	fs := vfs.NewMem()
	l := create(t, fs, small)
	must(t, l.Append(state(1, 7, 0), run(1, 4, 1, 1700), true))
	must(t, l.Close())
	path := "wal/0000000000000000-0000000000000000.wal"
	whole := []byte(strings.TrimRight(string(slurp(t, fs, path)), "\x00"))
	whole = append(whole, make([]byte, 4096)...)
	head := 80 // up to the snapshot record
	first := (head + sectorSize - 1) / sectorSize
	sectors := (len(whole) - 4096) / sectorSize
	// Any subset of the sectors after the first may be missing.
	for missing := uint64(1); missing < 1<<(sectors-first); missing++ {
		b := append([]byte(nil), whole...)
		for i := range sectors - first {
			if missing>>i&1 == 1 {
				clear(b[(first+i)*sectorSize : (first+i+1)*sectorSize])
			}
		}
		c := vfs.NewMem()
		must(t, c.MkdirAll("wal", 0o700))
		spit(t, c, path, b)
		l, err := Open(c, "wal", small)
		if err != nil {
			t.Fatalf("sectors %b missing: %v", missing, err)
		}
		must(t, l.Close())
		if missing > 400 {
			missing += 97
		}
	}
}

func TestOneByteOff(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	sum := func(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
	wrong := 0
	for range 2000 {
		b := make([]byte, 1+rng.IntN(300))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		right := sum(b)
		b[rng.IntN(len(b))] ^= byte(1 + rng.IntN(255))
		if !oneByteOff(sum(b)^right, len(b)) {
			t.Fatalf("a changed byte among %d is not found", len(b))
		}
		if oneByteOff(rng.Uint32(), len(b)) {
			wrong++
		}
	}
	if oneByteOff(0, 100) {
		t.Error("equal sums differ by a byte")
	}
	if wrong > 5 {
		t.Errorf("%d of 2000 random differences pass for one byte", wrong)
	}
}
