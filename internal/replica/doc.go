// Package replica is consensus as one room: the core, which takes a step for what has
// happened and says what follows (step.go; gate.go, stall.go and departure.go are its
// policies), and the pipeline behind it (pipeline.go): the work on the log (writer.go,
// write.go, install.go), what is applied (applier.go, run.go), and who is told
// (settle.go).
//
// In: messages of peers, proposals, ticks, and that a piece of work is done. Out:
// messages, the next piece of work, and what may go out because of it. Always true:
// nothing that waits for durability goes out before it is durable; raft hears that
// entries are applied when all of their run is, and of their membership changes no
// later; an installation leaves what a crash between any two of its jobs can be
// recovered from; the same inputs give the same effects. There is no goroutine, clock
// or file in it: the world stands behind a Door, and two drivers, with goroutines in
// package server and with events in the simulator, say when a piece of work is done.
package replica
