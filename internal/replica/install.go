package replica

import (
	"go.etcd.io/raft/v3/raftpb"
)

// Stage is a step of an installation. The process may end in any of them and between
// any two.
type Stage string

const (
	// Import makes a store of the received snapshot beside the one in use.
	Import Stage = "import"
	// Exchange puts that store into use, between two runs of entries.
	Exchange Stage = "exchange"
	// Reset lets the log begin behind the snapshot. It comes behind the exchange: a
	// log that is behind the store is reset at the next start, but a store that is
	// behind the log could not be brought forward by anything.
	Reset Stage = "reset of the log"
	// Follow writes what came along with the snapshot.
	Follow Stage = "writes behind the reset"
	// Installed is the end.
	Installed Stage = ""
)

// Install is the exchange of the whole state of a member for a snapshot that raft has
// accepted.
type Install struct {
	write Write
	left  []Stage
}

// Install begins the installation of the write's snapshot.
func (w Write) Install() *Install {
	return &Install{write: w, left: []Stage{Import, Exchange, Reset, Follow}}
}

// Stage returns what has to be done now.
func (i *Install) Stage() Stage {
	if len(i.left) == 0 {
		return Installed
	}
	return i.left[0]
}

// Done tells that the present stage is done, durably.
func (i *Install) Done() {
	if i.left = i.left[1:]; len(i.left) == 0 {
		i.write.done = true
	}
}

// Snapshot is what is installed.
func (i *Install) Snapshot() *raftpb.Snapshot { return i.write.Snapshot() }

// Messages returns what was waiting for the installation, as Write.Messages.
func (i *Install) Messages(self uint64) (own, out []*raftpb.Message) { return i.write.Messages(self) }

// Follow is the work of the stage of that name.
func (i *Install) Follow(log Log) error {
	a := &i.write.works[0]
	if a.HardState == nil && len(a.Entries) == 0 {
		return nil
	}
	return log.Append(a.HardState, a.Entries, true)
}
