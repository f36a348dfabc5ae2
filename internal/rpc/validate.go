package rpc

import (
	"bytes"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

var (
	errStreamSort   = status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	errStreamFilter = status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
)

func checkRange(r *pb.RangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	if r.SortOrder < pb.RangeRequest_NONE || r.SortOrder > pb.RangeRequest_DESCEND ||
		r.SortTarget < pb.RangeRequest_KEY || r.SortTarget > pb.RangeRequest_VALUE {
		return rpctypes.ErrGRPCInvalidSortOption
	}
	return nil
}

func checkRangeStream(r *pb.RangeRequest) error {
	if err := checkRange(r); err != nil {
		return err
	}
	// A target without an order passes, as in etcd.
	if r.SortOrder != pb.RangeRequest_NONE && (r.SortTarget != pb.RangeRequest_KEY || r.SortOrder == pb.RangeRequest_DESCEND) {
		return errStreamSort
	}
	if r.MinModRevision != 0 || r.MaxModRevision != 0 || r.MinCreateRevision != 0 || r.MaxCreateRevision != 0 {
		return errStreamFilter
	}
	return nil
}

func checkPut(r *pb.PutRequest) error {
	switch {
	case len(r.Key) == 0:
		return rpctypes.ErrGRPCEmptyKey
	case r.IgnoreValue && len(r.Value) != 0:
		return rpctypes.ErrGRPCValueProvided
	case r.IgnoreLease && r.Lease != 0:
		return rpctypes.ErrGRPCLeaseProvided
	}
	return nil
}

func checkDelete(r *pb.DeleteRangeRequest) error {
	if len(r.Key) == 0 {
		return rpctypes.ErrGRPCEmptyKey
	}
	return nil
}

// checkTxn checks a whole transaction. maxOps bounds the longest of the lists,
// and a nested transaction has what the lists around it have left, which also
// bounds the depth of the recursions here.
func checkTxn(r *pb.TxnRequest, maxOps int) error {
	nested, err := checkOps(r, maxOps)
	if err != nil {
		return err
	}
	if !nested {
		if err := checkFlat(r.Success); err != nil {
			return err
		}
		return checkFlat(r.Failure)
	}
	if _, err := overlaps(r.Success); err != nil {
		return err
	}
	_, err = overlaps(r.Failure)
	return err
}

func checkOps(r *pb.TxnRequest, maxOps int) (nested bool, err error) {
	longest := max(len(r.Compare), len(r.Success), len(r.Failure))
	if longest > maxOps {
		return false, rpctypes.ErrGRPCTooManyOps
	}
	for _, c := range r.Compare {
		if len(c.Key) == 0 {
			return false, rpctypes.ErrGRPCEmptyKey
		}
	}
	for _, list := range [2][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range list {
			switch v := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
				err = checkRange(v.RequestRange)
			case *pb.RequestOp_RequestPut:
				err = checkPut(v.RequestPut)
			case *pb.RequestOp_RequestDeleteRange:
				err = checkDelete(v.RequestDeleteRange)
			case *pb.RequestOp_RequestTxn:
				nested = true
				_, err = checkOps(v.RequestTxn, maxOps-longest)
			default:
				err = rpctypes.ErrGRPCKeyNotFound
			}
			if err != nil {
				return false, err
			}
		}
	}
	return nested, nil
}

// checkFlat is overlaps for the common list without nested transactions.
func checkFlat(ops []*pb.RequestOp) error {
	if len(ops) < 2 {
		return nil
	}
	_, err := overlaps(ops)
	return err
}

// span is the keys [from, to); all from from on if to is nil.
type span struct{ from, to []byte }

// ends compares the ends of two spans.
func (s span) ends(o span) int {
	switch {
	case s.to == nil && o.to == nil:
		return 0
	case s.to == nil:
		return 1
	case o.to == nil:
		return -1
	}
	return bytes.Compare(s.to, o.to)
}

// reaches reports whether key lies before the end of s.
func (s span) reaches(key []byte) bool { return s.to == nil || bytes.Compare(key, s.to) < 0 }

// writes is what a list of operations may write: the keys put, sorted and each
// once, and the ranges deleted, sorted and disjoint.
type writes struct {
	puts [][]byte
	dels []span
}

// overlaps finds what ops may write, or that they put a key twice or into a
// range that they delete.
//
// The rules are etcd's to the letter. The two branches of a nested transaction
// exclude each other, so a key may be put in both. A put in a nested
// transaction meets the deletes of its own list and of the nested ones before
// it, not of those after. One is not: etcd takes a delete with the open end "\0" for
// one that ends before it begins. Here it meets what it deletes: members of etcd end
// for good at a put that relies on a key which such a delete has taken away.
//
// Keys and ranges are kept sorted and are merged list by list, so the whole
// takes O(n log n) for a flat list, and for nested ones a merge per nested
// transaction.
func overlaps(ops []*pb.RequestOp) (writes, error) {
	var w writes
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			if s := deleted(d); s.reaches(s.from) { // the others delete nothing, and meet nothing
				w.dels = append(w.dels, s)
			}
		}
	}
	slices.SortFunc(w.dels, func(a, b span) int { return bytes.Compare(a.from, b.from) })
	w.dels = join(w.dels)

	for _, op := range ops {
		t := op.GetRequestTxn()
		if t == nil {
			continue
		}
		yes, err := overlaps(t.Success)
		if err != nil {
			return w, err
		}
		no, err := overlaps(t.Failure)
		if err != nil {
			return w, err
		}
		puts, _ := merge(yes.puts, no.puts)
		all, twice := merge(w.puts, puts)
		if twice || meet(puts, w.dels) {
			return w, rpctypes.ErrGRPCDuplicateKey
		}
		w.puts = all
		w.dels = mergeSpans(mergeSpans(w.dels, yes.dels), no.dels)
	}

	own := make([][]byte, 0, len(ops))
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			own = append(own, p.Key)
		}
	}
	slices.SortFunc(own, bytes.Compare)
	for i := 1; i < len(own); i++ {
		if bytes.Equal(own[i-1], own[i]) {
			return w, rpctypes.ErrGRPCDuplicateKey
		}
	}
	all, twice := merge(w.puts, own)
	if twice || meet(own, w.dels) {
		return w, rpctypes.ErrGRPCDuplicateKey
	}
	w.puts = all
	return w, nil
}

func deleted(d *pb.DeleteRangeRequest) span {
	switch {
	case openEnded(d.RangeEnd):
		return span{from: d.Key}
	case len(d.RangeEnd) != 0:
		return span{d.Key, d.RangeEnd}
	}
	return span{d.Key, append(slices.Clip(d.Key), 0)}
}

func openEnded(end []byte) bool { return len(end) == 1 && end[0] == 0 }

// join joins sorted spans that touch, in place.
func join(s []span) []span {
	if len(s) < 2 {
		return s
	}
	out := s[:1]
	for _, x := range s[1:] {
		if last := &out[len(out)-1]; last.to == nil || bytes.Compare(x.from, last.to) <= 0 {
			if x.ends(*last) > 0 {
				last.to = x.to
			}
		} else {
			out = append(out, x)
		}
	}
	return out
}

// mergeSpans joins two lists of sorted, disjoint spans.
func mergeSpans(a, b []span) []span {
	if len(a) == 0 {
		return b
	}
	if len(b) == 0 {
		return a
	}
	out := make([]span, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if bytes.Compare(a[0].from, b[0].from) <= 0 {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return join(append(append(out, a...), b...))
}

// merge joins two sorted sets of keys and reports whether they share one.
func merge(a, b [][]byte) (out [][]byte, shared bool) {
	if len(a) == 0 {
		return b, false
	}
	if len(b) == 0 {
		return a, false
	}
	out = make([][]byte, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch c := bytes.Compare(a[0], b[0]); {
		case c < 0:
			out, a = append(out, a[0]), a[1:]
		case c > 0:
			out, b = append(out, b[0]), b[1:]
		default:
			shared = true
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...), shared
}

// meet reports whether a key lies in a span. Both are sorted.
func meet(keys [][]byte, spans []span) bool {
	for len(keys) > 0 && len(spans) > 0 {
		switch {
		case bytes.Compare(keys[0], spans[0].from) < 0:
			keys = keys[1:]
		case !spans[0].reaches(keys[0]):
			spans = spans[1:]
		default:
			return true
		}
	}
	return false
}
