package server

// localReplica is what the services of a member build on: who it is and what it knows of
// the others (raftState), what is applied (stored), how to write (proposer) and to read
// (reader) through consensus, and when to give up (life).
type localReplica struct {
	*life
	*raftState
	*stored
	*proposer
	*reader
}

// giveUp ends what waits for the log or for a quorum, now and from now on.
func (r *localReplica) giveUp() {
	r.props.Close(errStopped)
	r.reads.Close(errStopped)
}
