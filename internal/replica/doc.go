// Package replica is consensus as one room: the core, which takes a step for what has
// happened and says what follows (step.go; gate.go, stall.go and departure.go are its
// policies), and the order of the work that follows (write.go, run.go, install.go).
//
// In: messages of peers, proposals, ticks, and that a piece of work is done. Out:
// messages, the next piece of work, and what may go out because of it. Always true:
// nothing that waits for durability goes out before it is durable; raft hears that
// entries are applied when all of their run is, and of their membership changes no
// later; an installation leaves what a crash between any two of its stages can be
// recovered from; the same inputs give the same effects. There is no goroutine, clock
// or file in it, and one lock, of the inbox: the two drivers, of production and of the
// simulator, carry the work out, one piece of a kind at a time.
package replica
