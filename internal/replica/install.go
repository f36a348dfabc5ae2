package replica

import (
	"context"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
)

// Job is a piece of work on the log. The process may end in any of them and between any
// two.
type Job string

const (
	// Idle: there is nothing to do.
	Idle Job = ""
	// Append writes a group of appends, made durable by one sync.
	Append Job = "append"
	// Import makes a store of the received snapshot beside the one in use.
	Import Job = "import"
	// Exchange puts that store into use, between two runs of entries.
	Exchange Job = "exchange"
	// Reset lets the log begin behind the snapshot. It comes behind the exchange: a
	// log that is behind the store is reset at the next start, but a store that is
	// behind the log could not be brought forward by anything.
	Reset Job = "reset of the log"
	// Follow writes what came along with the snapshot. It is the last of an installation.
	Follow Job = "writes behind the reset"
)

// Install is the exchange of the whole state of a member for a snapshot that raft has
// accepted.
type Install struct {
	write Write
	left  []Job
}

// Importer is where a snapshot is installed. Each call is durable when it returns
// without an error; one that found no room may be made again.
type Importer interface {
	// Import makes a store of a snapshot that was received.
	Import(context.Context, *raftpb.Snapshot) error
	// ResetLog lets the log begin behind a snapshot.
	ResetLog(*raftpb.SnapshotMetadata) error
}

// Install begins the installation of the write's snapshot.
func (w Write) Install() *Install {
	return &Install{write: w, left: []Job{Import, Exchange, Reset, Follow}}
}

// Job returns what has to be done now, Idle at the end.
func (i *Install) Job() Job {
	if len(i.left) == 0 {
		return Idle
	}
	return i.left[0]
}

// Do does the present job, but not the exchange.
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
	return fmt.Errorf("replica: %q is not for here", i.Job())
}

// Done tells that the present job is done, durably.
func (i *Install) Done() {
	if i.left = i.left[1:]; len(i.left) == 0 {
		i.write.done = true
	}
}

// Snapshot is what is installed.
func (i *Install) Snapshot() *raftpb.Snapshot { return i.write.Snapshot() }

// Messages returns what was waiting for the installation, as Write.Messages.
func (i *Install) Messages(self uint64) (own, out []*raftpb.Message) { return i.write.Messages(self) }
