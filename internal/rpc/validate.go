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
	// A target without an order is accepted, as in etcd.
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

// checkTxn validates a transaction. maxOps limits the longest of its three lists; a nested
// transaction gets what the enclosing lists have left, which also limits the depth of the
// recursions here.
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

// checkFlat checks a list without nested transactions for overlaps.
func checkFlat(ops []*pb.RequestOp) error {
	if len(ops) < 2 {
		return nil
	}
	_, err := overlaps(ops)
	return err
}

// span is the key range [from, to); a nil to means no upper end.
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

// reaches reports whether key is below the end of s.
func (s span) reaches(key []byte) bool { return s.to == nil || bytes.Compare(key, s.to) < 0 }

// writes is the set of keys that operations may write: keys put, sorted and unique, and
// ranges deleted, sorted and disjoint.
type writes struct {
	puts [][]byte
	dels []span
}

// overlaps returns what ops may write, or an error if they put a key twice or into a range
// that they delete.
//
// The rules are exactly etcd's. The two branches of a nested transaction are mutually
// exclusive, so a key may be put in both. A put in a nested transaction conflicts with the
// deletes of its own list and of nested transactions before it, but not of those after it.
// One rule differs: etcd treats a delete with the open end "\0" as a range that ends before
// it begins. Here it conflicts with what it really deletes: etcd members crash for good at a
// put that relies on a key which such a delete has removed.
//
// Keys and ranges are kept sorted and merged list by list, so a flat list takes O(n log n),
// and nested ones one merge per nested transaction.
func overlaps(ops []*pb.RequestOp) (writes, error) {
	var w writes
	for _, op := range ops {
		if d := op.GetRequestDeleteRange(); d != nil {
			if s := deleted(d); s.reaches(s.from) { // the others delete nothing and cannot conflict
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

// join merges sorted spans that touch or overlap, in place.
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

// mergeSpans merges two lists of sorted, disjoint spans.
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

// merge merges two sorted sets of keys and reports whether they have one in common.
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

// meet reports whether any key lies in any span. Both must be sorted.
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
