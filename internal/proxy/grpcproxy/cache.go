package grpcproxy

import (
	"container/list"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"

	"quorate/internal/metrics"
)

const (
	// cacheEntries is etcd's limit.
	cacheEntries = 2048

	// cacheBytes bounds the requests and answers together, cacheShare the share of it that
	// one answer may take.
	cacheBytes = 64 << 20
	cacheShare = 16
)

// span is a range of keys: [key, end); the single key if end is empty; all keys from key on
// if end is "\x00".
type span struct{ key, end string }

func (s span) overlaps(o span) bool { return s.from(o) && o.from(s) }

// from reports whether s does not end before o begins.
func (s span) from(o span) bool {
	switch s.end {
	case "":
		return s.key >= o.key
	case "\x00":
		return true
	}
	return s.end > o.key
}

// cache holds the answers used most recently, each for one token and request. Answers are
// shared and must not be changed.
//
// An answer is stored only if nothing in its range was invalidated while it was in flight:
// the cache tracks the reads in progress.
type cache struct {
	maxEntries int
	maxBytes   int

	mu        sync.Mutex
	entries   map[cacheKey]*list.Element            // list of *entry
	used      *list.List                            // most recently used first
	points    map[string]map[*list.Element]struct{} // entries of current reads of a single key
	ranges    map[*list.Element]struct{}            // entries of current reads of a range
	bytes     int
	compacted int64
	reading   map[*read]struct{}
}

type cacheKey struct{ token, request string }

type entry struct {
	key  cacheKey
	span span
	old  bool // at an explicit revision: no write makes it stale
	resp *pb.RangeResponse
	size int
}

// read is a read in flight.
type read struct {
	c     *cache
	key   cacheKey
	span  span
	rev   int64
	stale bool // guarded by c.mu
}

func newCache(maxEntries, maxBytes int) *cache {
	c := &cache{maxEntries: maxEntries, maxBytes: maxBytes, reading: map[*read]struct{}{}}
	c.reset()
	return c
}

func (c *cache) reset() {
	c.entries, c.used, c.bytes = map[cacheKey]*list.Element{}, list.New(), 0
	c.points, c.ranges = map[string]map[*list.Element]struct{}{}, map[*list.Element]struct{}{}
	metrics.GRPCProxyCacheKeysTotal.Set(0)
}

// keyOf returns the same key for a linearizable and a serializable read.
func keyOf(token string, r *pb.RangeRequest) cacheKey {
	if !r.Serializable {
		r = proto.Clone(r).(*pb.RangeRequest)
		r.Serializable = true
	}
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(r) // a message that was decoded can always be encoded
	return cacheKey{token, string(b)}
}

// get returns nil if there is no usable answer.
func (c *cache) get(token string, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	key := keyOf(token, r)
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[key]
	if r.Revision > 0 && r.Revision < c.compacted {
		if e != nil {
			c.remove(e)
		}
		metrics.GRPCProxyCacheHitsTotal.Inc()
		return nil, rpctypes.ErrGRPCCompacted
	}
	if e == nil {
		metrics.GRPCProxyCacheMissesTotal.Inc()
		return nil, nil
	}
	metrics.GRPCProxyCacheHitsTotal.Inc()
	c.used.MoveToFront(e)
	return e.Value.(*entry).resp, nil
}

// begin registers a read. The caller must end it, whether it stores an answer or not.
func (c *cache) begin(token string, r *pb.RangeRequest) *read {
	d := &read{c: c, key: keyOf(token, r), span: span{string(r.Key), string(r.RangeEnd)}, rev: r.Revision}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading[d] = struct{}{}
	return d
}

func (d *read) end() {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	delete(d.c.reading, d)
}

// store adds the answer, unless it is already stale, too large, or older than the stored
// one.
func (d *read) store(resp *pb.RangeResponse) {
	n := &entry{key: d.key, span: d.span, old: d.rev > 0, resp: resp,
		size: len(d.key.token) + len(d.key.request) + proto.Size(resp)}
	c := d.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.stale || n.size > c.maxBytes/cacheShare || d.rev > 0 && d.rev <= c.compacted {
		return
	}
	if e := c.entries[d.key]; e != nil {
		if e.Value.(*entry).resp.GetHeader().GetRevision() > resp.GetHeader().GetRevision() {
			return
		}
		c.remove(e)
	}
	e := c.used.PushFront(n)
	c.entries[d.key] = e
	c.bytes += n.size
	switch {
	case n.old:
	case n.span.end == "":
		if c.points[n.span.key] == nil {
			c.points[n.span.key] = map[*list.Element]struct{}{}
		}
		c.points[n.span.key][e] = struct{}{}
	default:
		c.ranges[e] = struct{}{}
	}
	for len(c.entries) > c.maxEntries || c.bytes > c.maxBytes {
		c.remove(c.used.Back())
	}
	metrics.GRPCProxyCacheKeysTotal.Set(float64(len(c.entries)))
}

func (c *cache) remove(e *list.Element) {
	n := c.used.Remove(e).(*entry)
	delete(c.entries, n.key)
	delete(c.ranges, e)
	if at := c.points[n.span.key]; at != nil {
		delete(at, e)
		if len(at) == 0 {
			delete(c.points, n.span.key)
		}
	}
	c.bytes -= n.size
}

// invalidate drops answers about the spans, and prevents reads of them in flight from being
// stored. The returned function does the same again: a write takes effect at some time
// between the two.
func (c *cache) invalidate(spans ...span) (again func()) {
	drop := func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range spans {
			c.drop(s)
		}
		metrics.GRPCProxyCacheKeysTotal.Set(float64(len(c.entries)))
	}
	drop()
	return drop
}

func (c *cache) drop(s span) {
	for d := range c.reading {
		d.stale = d.stale || d.rev <= 0 && d.span.overlaps(s)
	}
	if s.end == "" {
		for e := range c.points[s.key] {
			c.remove(e)
		}
	} else {
		for key, at := range c.points {
			if !s.overlaps(span{key, ""}) {
				continue
			}
			for e := range at {
				c.remove(e)
			}
		}
	}
	for e := range c.ranges {
		if s.overlaps(e.Value.(*entry).span) {
			c.remove(e)
		}
	}
}

// compact makes reads of older revisions fail.
func (c *cache) compact(rev int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.compacted = max(c.compacted, rev)
}

// clear drops all answers: permissions have changed.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset()
	for d := range c.reading {
		d.stale = true
	}
}
