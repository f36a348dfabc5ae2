package server

// localReplica is the base of a member's services: its identity and view of consensus
// (raftState), the applied state (stored), how to write (proposer) and to read (reader)
// through consensus, and the end of the member (life).
type localReplica struct {
	*life
	*raftState
	*stored
	*proposer
	*reader
}

// giveUp ends all waits for the log or for a quorum, now and in future.
func (r *localReplica) giveUp() {
	r.props.Close(errStopped)
	r.reads.Close(errStopped)
}
