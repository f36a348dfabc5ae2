package replica

import (
	"context"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// Job is a unit of work on the log. The process may crash during any job and between any
// two.
type Job string

const (
	// Idle means that there is nothing to do.
	Idle Job = ""
	// Append writes a group of appends and makes them durable with one sync.
	Append Job = "append"
	// Import builds a second store from the received snapshot, next to the one in use.
	Import Job = "import"
	// Exchange switches to that store, between two runs of entries.
	Exchange Job = "exchange"
	// Reset restarts the log after the snapshot. It comes after the exchange: a log that
	// is older than the store is reset at the next start, but nothing could bring a store
	// forward that is older than its log.
	Reset Job = "reset of the log"
	// Follow writes the hard state and entries that came with the snapshot. It is the last
	// job of an installation.
	Follow Job = "writes behind the reset"
)

// Install replaces the whole state of a member with a snapshot that raft has accepted.
type Install struct {
	write Write
	left  []Job
}

// Importer does the file work of an installation. When a call returns nil its effect is
// durable; a call that failed because the disk is full may be repeated.
type Importer interface {
	// Import builds a store from a received snapshot.
	Import(context.Context, *raftpb.Snapshot) error
	// ResetLog restarts the log after a snapshot.
	ResetLog(*raftpb.SnapshotMetadata) error
}

// Install returns the installation of the write's snapshot, with all its jobs to do.
func (w Write) Install() *Install {
	return &Install{write: w, left: []Job{Import, Exchange, Reset, Follow}}
}

// Job returns the current job, Idle after the last one.
func (i *Install) Job() Job {
	if len(i.left) == 0 {
		return Idle
	}
	return i.left[0]
}

// Do runs the current job, unless that is the exchange, which the applier runs.
func (i *Install) Do(ctx context.Context, home Importer, log Log) error {
	switch i.Job() {
	case Import:
		return home.Import(ctx, i.Snapshot())
	case Reset:
		return home.ResetLog(i.Snapshot().GetMetadata())
	case Follow:
		a := &i.write.works[0]
		if a.HardState == nil && len(a.Entries) == 0 {
			return nil
		}
		return log.Append(a.HardState, a.Entries, true)
	}
	return fmt.Errorf("replica: install cannot run job %q", i.Job())
}

// Done records that the current job is complete and durable.
func (i *Install) Done() {
	if i.left = i.left[1:]; len(i.left) == 0 {
		i.write.done = true
	}
}

// Snapshot returns the snapshot that is being installed.
func (i *Install) Snapshot() *raftpb.Snapshot { return i.write.Snapshot() }

// Messages returns the messages that waited for the installation, see Write.Messages.
func (i *Install) Messages(self ids.Member) (own, out []*raftpb.Message) {
	return i.write.Messages(self)
}
