package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/metrics"
)

// Listed is what is known about the answer to a range request before its records are
// read.
type Listed struct {
	Revision ids.Revision // current revision of the state that is read
	Count    int64        // keys in the range, regardless of limit and filters
	More     bool         // the limit cut off some keys
	Keys     int64        // records of the answer
	Bytes    int64        // length of the records, each as an element of RangeResponse.kvs
}

// Reading is an answer that is read while it is sent.
type Reading interface {
	About() Listed
	// Next returns the next records, each as an element of RangeResponse.kvs, and
	// whether they are the last. They are valid until the next call. The first records
	// have already been read.
	Next() (elems []byte, last bool, err error)
	// Took is the time spent on reading since the Reading was created.
	Took() time.Duration
	Close()
}

// List is the Reading of a range request. The index knows how long each record is, so a
// list holds no more than one piece of them at a time.
//
// Next is not safe for concurrent use. Between two calls of Next no iterator of the
// engine is open, however long the caller takes, and every renewAfter the view of the
// list is replaced by a newer one, in which it reads the same revision: a compaction
// waits for a list no longer than that. When the revision itself has been compacted,
// the list keeps its view for another overtakenFor, and then fails with ErrCompacted if
// it is not finished.
type List struct {
	Listed
	s        *Store
	rev      ids.Revision // of the records
	keysOnly bool
	maxBytes int           // of a message; 0: the list chooses the size of the pieces
	message  int           // number of keys of the next message
	took     time.Duration // spent on reading all pieces but the first
	closed   bool

	mu    sync.Mutex // serializes Next and renew; guards the following fields
	err   error
	view  *View // nil when nothing is left to read
	stop  func() bool
	over  int // number of times that renew has found the revision compacted
	left  source
	unset int64 // records that are not in a piece yet

	piece part
	most  int64 // approximate length of the next piece
	taken int64 // allowance for large pieces that this list holds
	// handed is the total length of the previous pieces.
	handed int64
}

// source is the remainder of an answer: keys to walk over, selected keys, or records.
type source struct {
	root  kid
	span  span
	picks []pick
	kvs   [][]byte
}

// part is a piece of the answer: elements as they are sent.
type part struct {
	room  *room
	elems []elem
	end   int // total length of the elements
	at    int // number of elements that Next has returned
	falls int // number of elements with a lower revision than their predecessor
}

// elem is the position of a record in a piece.
type elem struct {
	mod       ids.Revision
	sub       uint32
	size, end uint32
}

const (
	tagKVs = 2<<3 | 2 // RangeResponse.kvs

	// pieceBytes is how much of a list is read at a time. If the keys were not written
	// in their order, a block of the engine is read again for each piece that contains
	// one of its records: a few large pieces cost a fraction of that. All lists together
	// may hold largePieces bytes in such pieces; the others continue with small ones.
	pieceBytes  = 1 << 20
	largePieces = 256 << 20
	leastLarge  = 8 << 20
	// Large pieces are used if at least one in scattered records has a lower revision
	// than the previous record.
	scattered = 8

	renewAfter   = 10 * time.Second
	overtakenFor = time.Minute
)

// A list in messages begins with a small message and doubles the size, as in etcd, up
// to maxMessage keys.
const (
	firstMessage = 10
	maxMessage   = 1 << 17
)

// List answers a request like View.Range. The caller must close the result.
func (s *Store) List(req *pb.RangeRequest) (*List, error) { return s.list(req, 0) }

// ListMessages is List for an answer in several messages of about maxBytes each, one
// for each call of Next.
func (s *Store) ListMessages(req *pb.RangeRequest, maxBytes int) (*List, error) {
	return s.list(req, max(maxBytes, 1))
}

func (s *Store) list(req *pb.RangeRequest, maxBytes int) (*List, error) {
	v := s.View()
	l := &List{s: v.s, view: v, keysOnly: req.KeysOnly, maxBytes: maxBytes, message: firstMessage, most: pieceBytes}
	l.view.ranges++
	if err := l.begin(req); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// begin selects the keys and reads the first piece.
func (l *List) begin(req *pb.RangeRequest) (err error) {
	r := l.view.reader()
	if l.rev, err = r.resolve(ids.Revision(req.Revision)); err != nil {
		return err
	}
	l.Revision = r.rev
	switch {
	case len(req.RangeEnd) == 0 || req.CountOnly || custom(req) && req.SortTarget == pb.RangeRequest_VALUE:
		res, err := r.rangeKeys(req)
		if err != nil {
			return err
		}
		l.Count, l.More, l.left.kvs = res.Count, res.More, res.KVs
		for _, kv := range res.KVs {
			l.count(elemLen(len(kv)))
		}
		l.gather()
	case custom(req):
		var res RangeResult
		l.left.picks = r.picked(&res, req, r.at(l.rev), makeSpan(req.Key, req.RangeEnd), l.rev)
		l.Count, l.More = res.Count, res.More
		for _, p := range l.left.picks {
			l.count(elemLen(l.recordLen(p.meta, p.key)))
		}
		l.gather()
	default:
		l.left.root, l.left.span = r.at(l.rev), makeSpan(req.Key, req.RangeEnd)
		all := l.left.root.total(l.left.span, l.rev)
		l.Count = all.live
		switch l.More = req.Limit > 0 && req.Limit < all.live; {
		case l.More:
			l.walkFirst(req.Limit)
			r.pin(l.rev)
		case l.keysOnly:
			l.walkFirst(all.live)
		default:
			l.Keys, l.Bytes, l.unset = all.live, all.bytes, all.live
			l.gather()
		}
	}
	if err := l.read(); err != nil {
		return err
	}
	if l.view != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.stop = l.s.o.Clock.AfterFunc(renewAfter, l.renew)
	}
	return nil
}

func (l *List) count(n int) {
	l.Keys++
	l.Bytes += int64(n)
	l.unset++
}

// keyOf returns the key of an entry if the answer needs it: records contain their keys, and
// the index has them somewhere else than the lengths.
func (l *List) keyOf(n *node, i int) []byte {
	if l.keysOnly {
		return n.key(i)
	}
	return nil
}

// recordLen returns the length of a record in the answer; without values, that of key.
func (l *List) recordLen(m meta, key []byte) int {
	if l.keysOnly {
		return int(recordLen(len(key), 0, m, 0))
	}
	return int(m.size)
}

// elemLen returns the length of a record of n bytes as an element.
func elemLen(n int) int { return 1 + uvarintLen(uint64(n)) + n }

// walkFirst measures an answer of limit keys and selects its first piece in the same pass.
func (l *List) walkFirst(limit int64) {
	selecting := true
	next := l.left.span.lo
	l.left.root.ascend(l.left.span, l.rev, func(n *node, i int, m meta) bool {
		if l.Keys == limit {
			return false
		}
		key := l.keyOf(n, i)
		l.count(elemLen(l.recordLen(m, key)))
		if selecting {
			if selecting = l.add(m, key); !selecting {
				next = bytes.Clone(n.key(i))
			}
		}
		return true
	})
	l.left.span.lo = next
}

// gather selects the next piece.
func (l *List) gather() {
	l.piece.elems, l.piece.end, l.piece.at, l.piece.falls = l.piece.elems[:0], 0, 0, 0
	switch {
	case l.unset == 0:
	case l.left.kvs != nil:
		n := 0
		for n < len(l.left.kvs) && l.addRecord(l.left.kvs[n]) {
			n++
		}
		l.left.kvs = l.left.kvs[n:]
	case l.left.picks != nil:
		n := 0
		for n < len(l.left.picks) && l.add(l.left.picks[n].meta, l.left.picks[n].key) {
			n++
		}
		l.left.picks = l.left.picks[n:]
	default:
		l.left.root.ascend(l.left.span, l.rev, func(n *node, i int, m meta) bool {
			if l.add(m, l.keyOf(n, i)) {
				return l.unset > 0
			}
			l.left.span.lo = bytes.Clone(n.key(i))
			return false
		})
	}
}

// takes reports whether the piece has room for another record, of n bytes. It always
// has room for one record.
func (l *List) takes(n int) bool {
	return l.unset > 0 && (l.piece.end == 0 || int64(l.piece.end+elemLen(n)) <= l.most)
}

// add adds a key to the piece if it has room. An element that consists of the key
// alone is written at once.
func (l *List) add(m meta, key []byte) bool {
	n := l.recordLen(m, key)
	if !l.takes(n) {
		return false
	}
	if l.keysOnly {
		r := record{key: key, create: m.create, mod: m.mod, version: m.version}
		b := l.grow(elemLen(n))
		appendRecord(appendHead(b, n), r)
	}
	l.place(m.mod, m.sub&maxSub, n)
	return true
}

func (l *List) addRecord(kv []byte) bool {
	if !l.takes(len(kv)) {
		return false
	}
	b := l.grow(elemLen(len(kv)))
	_ = append(appendHead(b, len(kv)), kv...)
	l.place(0, 0, len(kv))
	return true
}

func (l *List) place(mod ids.Revision, sub uint32, n int) {
	l.piece.end += elemLen(n)
	if k := len(l.piece.elems); k > 0 && mod < l.piece.elems[k-1].mod {
		l.piece.falls++
	}
	l.piece.elems = append(l.piece.elems, elem{mod, sub, uint32(n), uint32(l.piece.end)})
	l.unset--
}

// grow returns room for n more bytes at the end of the piece.
func (l *List) grow(n int) []byte {
	need := l.piece.end + n
	if l.piece.room == nil || need > cap(l.piece.room.b) {
		old := l.piece.room
		l.piece.room = getRoom(max(need, 2*l.piece.end))
		if old != nil {
			copy(l.piece.room.b[:l.piece.end], old.b[:l.piece.end])
			old.put()
		}
	}
	return l.piece.room.b[l.piece.end:l.piece.end:need]
}

func appendHead(b []byte, n int) []byte {
	return binary.AppendUvarint(append(b, tagKVs), uint64(n))
}

// read fills the piece with the selected records, and closes the view if they are the
// last.
func (l *List) read() error {
	if len(l.piece.elems) > 0 && !l.keysOnly && l.left.kvs == nil {
		if err := l.readRecords(); err != nil {
			return err
		}
	}
	if l.unset == 0 {
		l.letGo()
	}
	return nil
}

func (l *List) readRecords() error {
	need := l.piece.end
	if l.piece.room == nil || need > cap(l.piece.room.b) {
		l.freeRoom()
		if l.taken > 0 && need <= int(l.taken) {
			l.piece.room = l.s.large.get(need)
		} else {
			l.piece.room = getRoom(need)
		}
	}
	if len(l.piece.elems) > getLimit {
		return l.scan()
	}
	var key [1 + TombstoneLen]byte
	key[0] = byte(engine.Key)
	for i := range l.piece.elems {
		e := &l.piece.elems[i]
		dst := l.slot(e)
		v, err := l.s.eng.Get(dst[:0], AppendRevision(key[:1], e.rev(), false))
		if err != nil {
			return missing(e.rev(), err)
		}
		if len(v) != len(dst) {
			return e.wrong(len(v))
		}
	}
	return nil
}

// slot writes the head of an element and returns the space for its record.
func (l *List) slot(e *elem) []byte {
	at := int(e.end) - elemLen(int(e.size))
	b := l.piece.room.b[:l.piece.end]
	appendHead(b[at:at], int(e.size))
	return b[e.end-e.size : e.end : e.end]
}

func (e *elem) rev() Revision { return Revision{e.mod, int64(e.sub)} }

// wrong returns the error for a record whose length differs from the index.
func (e *elem) wrong(n int) error {
	return corrupt(AppendRevision(nil, e.rev(), false), fmt.Errorf("the record has %d bytes, the index says %d", n, e.size))
}

// scan reads the records in order of revision, each to its position.
func (l *List) scan() error {
	elems := l.piece.elems
	order := inOrder(elems)
	at := func(i int) *elem {
		if order != nil {
			i = int(order[i])
		}
		return &elems[i]
	}
	m := l.s.many(at(0).rev(), at(len(elems)-1).rev(), len(elems))
	defer m.close()
	for i := range elems {
		e := at(i)
		v, err := m.read(e.rev())
		if err != nil {
			return err
		}
		if len(v) != int(e.size) {
			return e.wrong(len(v))
		}
		copy(l.slot(e), v)
	}
	return nil
}

// inOrder returns the positions of elems in ascending order of revision, nil if they
// are already in that order.
func inOrder(elems []elem) []int32 {
	sorted := true
	for i := 1; i < len(elems) && sorted; i++ {
		a, b := &elems[i-1], &elems[i]
		sorted = a.mod < b.mod || a.mod == b.mod && a.sub < b.sub
	}
	if sorted {
		return nil
	}
	first, last, subs := elems[0].mod, elems[0].mod, uint32(0)
	for i := range elems {
		first, last, subs = min(first, elems[i].mod), max(last, elems[i].mod), max(subs, elems[i].sub)
	}
	list, shift := make([]placed, len(elems)), bits.Len32(subs)
	if bits.Len64(uint64(last-first))+shift > 64 {
		revs := make([]Revision, len(elems))
		for i := range elems {
			revs[i] = elems[i].rev()
		}
		return byRevision(revs)
	}
	for i := range elems {
		list[i] = placed{uint64(elems[i].mod-first)<<shift | uint64(elems[i].sub), int32(i)}
	}
	list = byKey(list, uint64(last-first)<<shift|uint64(subs))
	order := make([]int32, len(elems))
	for i := range list {
		order[i] = list[i].at
	}
	return order
}

// About returns what is known about the list.
func (l *List) About() Listed { return l.Listed }

// Took returns the time spent on reading since List returned.
func (l *List) Took() time.Duration { return l.took }

// Next returns the next elements, in memory that is valid until the next call, and
// whether they are the last. For an empty answer the first call returns no elements.
func (l *List) Next() (elems []byte, last bool, err error) {
	p := &l.piece
	if p.at == len(p.elems) && p.at > 0 {
		start := l.s.o.Clock.Now()
		err := l.nextPiece()
		l.took += l.s.o.Clock.Now().Sub(start)
		if err != nil {
			return nil, false, err
		}
	}
	from, start := p.at, 0
	if from > 0 {
		start = int(p.elems[from-1].end)
	}
	if l.maxBytes == 0 {
		p.at = len(p.elems)
	} else {
		l.cut(start)
	}
	if p.at > from {
		elems = p.room.b[start:int(p.elems[p.at-1].end)]
	}
	return elems, l.unset == 0 && p.at == len(p.elems), nil
}

// cut determines the elements of the next message, which begins at start.
func (l *List) cut(start int) {
	p := &l.piece
	from := p.at
	if from > 0 {
		metrics.MVCCRangeTotal.Inc() // each message counts as a range; the first is already counted
	}
	for p.at < len(p.elems) && p.at < from+l.message && (p.at == from || int(p.elems[p.at].end)-start <= 2*l.maxBytes) {
		p.at++
	}
	if p.at == from {
		return
	}
	switch size := int(p.elems[p.at-1].end) - start; {
	case size > l.maxBytes:
		l.message = max((p.at-from)/2, 1)
	case 2*size <= l.maxBytes:
		l.message = min(l.message*2, maxMessage)
	}
}

// nextPiece reads the next piece.
func (l *List) nextPiece() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	l.enlarge()
	if l.maxBytes > 0 {
		metrics.MVCCRangeTotal.Inc()
	}
	l.gather()
	l.err = l.read()
	return l.err
}

// enlarge sizes the next piece for the rest of the answer, within the allowance for
// large pieces, if that saves reads.
func (l *List) enlarge() {
	l.handed += int64(l.piece.end)
	if l.taken > 0 || l.keysOnly || l.piece.falls*scattered < len(l.piece.elems) {
		return
	}
	if n := l.s.large.take(l.Bytes - l.handed); n > 0 {
		l.taken, l.most = n, n
	}
}

// renew replaces the view by a newer one, if that still has the revision.
func (l *List) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.view == nil {
		return
	}
	fresh := l.s.View()
	switch {
	case fresh.s != l.s: // a replaced store is not compacted any more
		fresh.Close()
		return
	case l.rev >= fresh.CompactRev():
		r := fresh.reader()
		l.left.root = r.at(l.rev)
		l.view.Close()
		l.view = fresh
	default:
		fresh.Close()
		if l.over++; time.Duration(l.over)*renewAfter > overtakenFor {
			l.err = ErrCompacted
			l.letGo()
			return
		}
	}
	l.stop = l.s.o.Clock.AfterFunc(renewAfter, l.renew)
}

// letGo closes the view. The remaining data is in memory.
func (l *List) letGo() {
	if l.view != nil {
		l.view.Close()
		l.view = nil
	}
	if l.stop != nil {
		l.stop()
		l.stop = nil
	}
}

// Close releases the resources of the list. It is idempotent.
func (l *List) Close() {
	if l.closed {
		return
	}
	l.closed = true
	l.mu.Lock()
	l.letGo()
	l.mu.Unlock()
	l.freeRoom()
	l.s.large.giveBack(l.taken)
}

func (l *List) freeRoom() {
	if l.piece.room != nil {
		l.s.large.put(l.piece.room)
		l.piece.room = nil
	}
}
