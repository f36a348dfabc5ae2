// Package cluster runs three real members as processes, kills and pauses them under load, and
// checks the history that clients and watchers recorded.
//
// In: the server binary, built from this tree or given with -args -etcd=PATH, a seed and a
// duration. Out: a verdict on linearizability, lost writes, watch streams and equality of the
// members, and figures. Always true: an operation counts as not done only if the connection to
// send it on was never made; every other operation without an answer may have been done, now or
// at any later time.
package cluster
