package v2store

import "time"

// Node is a node as clients see it. Key is a path of the store.
type Node struct {
	Key           string     `json:"key,omitempty"`
	Value         *string    `json:"value,omitempty"` // nil in a directory and in what was removed
	Dir           bool       `json:"dir,omitempty"`
	Expiration    *time.Time `json:"expiration,omitempty"` // UTC
	TTL           int64      `json:"ttl,omitempty"`        // seconds left, rounded up; negative if overdue
	Nodes         []*Node    `json:"nodes,omitempty"`
	ModifiedIndex uint64     `json:"modifiedIndex,omitempty"`
	CreatedIndex  uint64     `json:"createdIndex,omitempty"`
}

// Event is the outcome of a request, or what a watcher gets. Events are shared
// between callers, watchers and the history: nobody changes one.
type Event struct {
	Action    string `json:"action"`
	Node      *Node  `json:"node,omitempty"`
	PrevNode  *Node  `json:"prevNode,omitempty"`
	EtcdIndex uint64 `json:"-"` // the store's index when the event was made or handed out
	Refresh   bool   `json:"-"` // only prolongs a TTL: watchers are not told
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

// IsCreated reports whether the event made a node where there was none.
func (e *Event) IsCreated() bool {
	return e.Action == Create || e.Action == Set && e.PrevNode == nil
}

// Index is the index that the event took.
func (e *Event) Index() uint64 { return e.Node.ModifiedIndex }

// times fills in the expiration and what is left of it at the time at, in Unix ns;
// if that is not known, 0, the latter stays out.
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

// left is the time from at to expire in whole seconds, rounded up.
func left(expire, at int64) int64 {
	d := time.Unix(0, expire).Sub(time.Unix(0, at))
	s := int64(d / time.Second)
	if d%time.Second > 0 {
		s++
	}
	return s
}
