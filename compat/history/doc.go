// Package history drives a cluster with clients and watchers that record what they did and saw,
// and checks the record.
//
// In: connections to members, which may be replaced while the load runs. Out: the operations with
// their answers, the events of each watcher, and verdicts: on linearizability, on revisions, on
// what the members hold at the end. Always true: an operation counts as not done only if the
// connection to send it on was never made; every other operation without an answer may have been
// done, now or at any later time.
package history
