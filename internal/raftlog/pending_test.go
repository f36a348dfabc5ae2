package raftlog

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// A vote appended without a sync is durable once any later append with a sync
// has returned, even one with nothing else to write: the response to the
// candidate is sent then.
func TestSyncCoversAnEarlierHardState(t *testing.T) {
	later := map[string]*raftpb.HardState{
		"nothing":   nil,
		"the same":  {Term: new(uint64(5)), Vote: new(uint64(7)), Commit: new(uint64(0))},
		"empty one": {},
	}
	for name, hs := range later {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			l, err := Create(fs, "wal", Metadata{NodeID: 1, ClusterID: 2}, Options{SegmentBytes: 64 << 10, NoBackground: true})
			if err != nil {
				t.Fatal(err)
			}
			vote := &raftpb.HardState{Term: new(uint64(5)), Vote: new(uint64(7)), Commit: new(uint64(0))}
			if err := l.Append(vote, nil, false); err != nil {
				t.Fatal(err)
			}
			if err := l.Append(hs, nil, true); err != nil {
				t.Fatal(err)
			}
			disk := fs.CrashClone(vfs.CrashCloneCfg{})
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l, err = Open(disk, "wal", Options{SegmentBytes: 64 << 10, NoBackground: true})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if got := l.HardState(); got.GetTerm() != 5 || got.GetVote() != 7 {
				t.Fatalf("after the power loss the log knows term %d, vote %d; want 5 and 7", got.GetTerm(), got.GetVote())
			}
		})
	}
}
