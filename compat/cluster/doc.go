// Package cluster runs three members as processes, kills and pauses them under load, and checks the history that
// clients and watchers recorded (see package history).
//
// In: the server binary, built from this tree or given with -args -etcd=PATH, a seed and a duration. Out: a
// verdict on linearizability, lost writes, watch streams and equality of the members, and figures. Invariant:
// the only faults are those that a host of the cluster may have; all processes share one disk and one clock.
package cluster
