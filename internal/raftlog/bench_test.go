package raftlog

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// BenchmarkAppend appends groups of entries of 300 bytes to a real directory.
func BenchmarkAppend(b *testing.B) {
	for _, group := range []int{1, 32} {
		for _, nosync := range []bool{true, false} {
			b.Run(fmt.Sprintf("group=%d/sync=%v", group, !nosync), func(b *testing.B) {
				l, err := Create(vfs.Default, b.TempDir()+"/wal", testMD, Options{NoSync: nosync})
				if err != nil {
					b.Fatal(err)
				}
				defer l.Close()
				data := payload(1, 1, 300)
				next := uint64(1)
				b.SetBytes(int64(group * 300))
				b.ReportAllocs()
				for b.Loop() {
					ents := make([]*raftpb.Entry, group)
					for i := range ents {
						ents[i] = &raftpb.Entry{Term: new(uint64(1)), Index: new(next), Data: data}
						next++
					}
					if err := l.Append(state(1, 7, next-2), ents, true); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkOpen opens a log of 60 MB in entries of 300 bytes.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir() + "/wal"
	l, err := Create(vfs.Default, dir, testMD, Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	const n = 180_000
	for i := uint64(1); i <= n; i += 100 {
		if err := l.Append(state(1, 7, i-1), run(i, i+99, 1, 300), false); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		l, err := Open(vfs.Default, dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		for i := uint64(n - 10_000); i <= n; {
			ents, err := l.Entries(i, n+1, 1<<20)
			if err != nil {
				b.Fatal(err)
			}
			i += uint64(len(ents))
		}
		l.Close()
	}
}
