// Package history drives a cluster with clients and watchers that record what they did and saw, and checks the
// record.
//
// In: connections to members, which may be replaced while the load runs. Out: the operations with their answers,
// the events of each watcher, and verdicts: on linearizability, on revisions, on the final contents of the
// members. Invariant: an operation counts as not done only if the connection to send it on was never
// established; every other operation without an answer may have been done, now or at any later time.
package history
