package v2store

import "time"

// Node is a node as clients see it. Key is a path of the store.
type Node struct {
	Key           string     `json:"key,omitempty"`
	Value         *string    `json:"value,omitempty"` // nil in a directory and in a removed node
	Dir           bool       `json:"dir,omitempty"`
	Expiration    *time.Time `json:"expiration,omitempty"` // UTC
	TTL           int64      `json:"ttl,omitempty"`        // seconds left, rounded up; negative if overdue
	Nodes         []*Node    `json:"nodes,omitempty"`
	ModifiedIndex uint64     `json:"modifiedIndex,omitempty"`
	CreatedIndex  uint64     `json:"createdIndex,omitempty"`
}

// Event is the outcome of a request, or what a watcher receives. Callers, watchers and the
// history share events: they must not be changed.
type Event struct {
	Action    string `json:"action"`
	Node      *Node  `json:"node,omitempty"`
	PrevNode  *Node  `json:"prevNode,omitempty"`
	EtcdIndex uint64 `json:"-"` // the store's index when the event was made or returned
	Refresh   bool   `json:"-"` // only extends a TTL: watchers do not get it
}

// The actions of events.
const (
	Get              = "get"
	Create           = "create"
	Set              = "set"
	Update           = "update"
	Delete           = "delete"
	CompareAndSwap   = "compareAndSwap"
	CompareAndDelete = "compareAndDelete"
	Expire           = "expire"
)

// IsCreated reports whether the event created a node where there was none.
func (e *Event) IsCreated() bool {
	return e.Action == Create || e.Action == Set && e.PrevNode == nil
}

// Index returns the index of the event.
func (e *Event) Index() uint64 { return e.Node.ModifiedIndex }

// times sets the expiration and the remaining TTL at the time at, in Unix ns; if at is 0,
// unknown, it leaves out the latter.
func (n *Node) times(expire, at int64) {
	if expire == 0 {
		return
	}
	t := time.Unix(0, expire).UTC()
	n.Expiration = &t
	if at != 0 {
		n.TTL = left(expire, at)
	}
}

// left returns the time from at to expire in whole seconds, rounded up.
func left(expire, at int64) int64 {
	d := time.Unix(0, expire).Sub(time.Unix(0, at))
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}
