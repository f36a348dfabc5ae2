// Package replica holds everything between raft and the caller: the core, which turns
// inputs into effects one step at a time (step.go; gate.go, stall.go and departure.go
// are its policies), and the pipeline after it (pipeline.go): log writes (writer.go,
// write.go, install.go), apply (applier.go, run.go), and the delivery of results
// (settle.go).
//
// In: messages of peers, proposals, ticks, and completions of jobs. Out: messages, the
// next job, and what may be sent because of it. Always true: nothing that waits for
// durability is sent before it is durable; raft is told that a run of entries is applied
// once all of it is, and of its membership changes no later than that; after a crash
// between any two jobs of an installation the member can recover; the same inputs give
// the same effects. The package has no goroutines, clock or files: it reaches the
// outside through an Env. Two drivers, one with goroutines in package server and one
// with events in the simulator, decide when a job runs and completes.
package replica
