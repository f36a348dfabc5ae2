// Package descriptors divides the file descriptors that the process may have among its parts,
// and recognizes and waits out the lack of them.
//
// In: the limit on open files, a file system, and errors of its calls. Out: a Budget; a file
// system whose reads wait for a descriptor. Always true: the parts of a Budget and what is
// reserved are together no more than the limit, except for limits so low that each part gets
// its minimum; with a large limit every part gets as many as it can use.
package descriptors

import (
	"errors"
	"fmt"
	"math"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reserved is the number of descriptors for everything that has no number of its own: the raft
// log, files that are being written, snapshots, connections to other members.
const Reserved = 150

// Most and least of each part. The least ones may use some of what is reserved: a limit just
// above it must do for a small member.
const (
	maxCached, minCached   = 500, 4
	maxDirect, minDirect   = 400, 4
	maxPeers, minPeers     = 4096, 16
	maxMetrics, minMetrics = 1024, 4
	maxClients, minClients = 1 << 30, 8
)

// ErrTooFew is returned if the limit leaves nothing for clients.
var ErrTooFew = fmt.Errorf("file descriptor limit of etcd process is too low; please set higher: more than %d, with ulimit -n or LimitNOFILE= of the unit", Reserved)

// Store is how many tables one store keeps open.
type Store struct {
	Cached int // for reads through its cache
	Direct int // for reads past it; the same files again
}

// Budget is how many descriptors each part of a member may have. Listeners of one kind share
// theirs.
type Budget struct {
	Store                   Store
	Clients, Peers, Metrics int // connections
}

// Divide returns the budget of a member with a limit on open files. With a low limit each of
// the store's parts gets a twelfth of what is not reserved, so that the connections get two
// thirds: while a snapshot is installed there are two stores.
func Divide(limit uint64) (Budget, error) {
	if limit <= Reserved {
		return Budget{}, ErrTooFew
	}
	spare := int(min(limit, math.MaxInt32)) - Reserved
	b := Budget{Store: storeOf(spare)}
	spare -= 2 * (b.Store.Cached + b.Store.Direct)
	b.Peers = within(minPeers, spare/4, maxPeers)
	b.Metrics = within(minMetrics, spare/16, maxMetrics)
	b.Clients = within(minClients, spare-b.Peers-b.Metrics, maxClients)
	return b, nil
}

// ForProxy returns the number of connections from clients that a process without a store may
// have, on each of its ports.
func ForProxy(limit uint64) (int, error) {
	if limit <= Reserved {
		return 0, ErrTooFew
	}
	return int(min(limit-Reserved, maxClients)), nil
}

// ForStore returns the part of a store in this process. A process that serves nobody has it,
// too, whatever its limit is.
func ForStore() Store {
	limit := Limit()
	if limit == 0 {
		return Store{Cached: maxCached, Direct: maxDirect} // unknown
	}
	return storeOf(int(min(limit, math.MaxInt32)) - Reserved)
}

func storeOf(spare int) Store {
	return Store{Cached: within(minCached, spare/12, maxCached), Direct: within(minDirect, spare/12, maxDirect)}
}

func within(least, n, most int) int { return min(max(n, least), most) }

// Limit returns the process's limit on open files, 0 if unknown.
func Limit() uint64 {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return limit.Cur
}

// Exhausted reports whether a call failed because the process, or the machine, has no
// descriptor left. Nothing is wrong with the disk then: the call succeeds as soon as a
// connection or a file is closed.
func Exhausted(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// WayOut says what to do about it.
const WayOut = "raise LimitNOFILE, or close connections"
