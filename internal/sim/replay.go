package sim

import (
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/command"
	"quorate/internal/ids"
	"quorate/internal/lease"
	"quorate/internal/legacy/v2request"
)

// canonical returns a text that is the same for equal messages.
func canonical(resp any) string {
	m, ok := resp.(proto.Message)
	if !ok {
		return fmt.Sprint(resp)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%T %q", resp, b)
}

// judge applies entries to the model before the first member applies them. It returns the
// expected answer to each entry, nil for entries that the model does not cover.
func (w *World) judge(ents []apply.Entry) (want []*answer) {
	want = make([]*answer, len(ents))
	for i := range ents {
		e := &ents[i]
		index := ids.Index(e.GetIndex())
		if index <= w.model.index {
			want[i] = w.answers[index]
			continue
		}
		if w.model.index > 0 && index != w.model.index+1 {
			w.fail("entry %d is applied, but the first one after %d was not", index, w.model.index)
		}
		w.model.index = index
		r := request(e)
		if r == nil {
			continue
		}
		w.leases.applied(w, r)
		before := w.model.rev
		a := w.model.take(r)
		if w.model.rev > before {
			w.revs = append(w.revs, revAt{w.now, w.model.rev})
		}
		if a.resp != nil || a.err != nil {
			want[i] = &a
			w.answers[index] = &a
		}
	}
	return want
}

// request returns the v3 request of an entry, nil if it holds none.
func request(e *apply.Entry) *pb.InternalRaftRequest {
	if e.Req != nil {
		return e.Req
	}
	if e.Foreign != nil || len(e.Data) == 0 || e.GetType() != 0 {
		return nil
	}
	if v2, _, err := v2request.Parse(e.Data); v2 != nil || err != nil {
		return nil
	}
	r, err := command.Decode(e.Data)
	if err != nil {
		return nil
	}
	return r
}

// compare compares the answers that a member is about to give with the expected ones.
func (n *node) compare(ents []apply.Entry, want []*answer, out *apply.Outcome) {
	results := slices.DeleteFunc(slices.Clone(out.Results), func(r apply.Result) bool { return r.Reconfigured })
	for i := range ents {
		e := &ents[i]
		if !e.Local || len(results) == 0 || e.Req == nil || command.ID(e.Req) != results[0].ID {
			if v2, ok := e.Foreign.(*v2request.Request); ok && e.Local && len(results) > 0 && v2.ID == results[0].ID {
				results = results[1:]
			}
			continue
		}
		r := results[0]
		results = results[1:]
		if n.w.appliedHere[e.Req] == 0 { // if the network has repeated it, the first one is answered
			n.w.appliedHere[e.Req] = ids.Index(e.GetIndex())
		}
		if want[i] == nil {
			continue
		}
		n.w.compared++
		if d := want[i].differs(r.Resp, r.Err); d != "" && !(n.w.set.Quota > 0 && isNoSpace(r.Err)) {
			n.w.fail("the answer of member %d to entry %d (%v) %s", n.index, e.GetIndex(), e.Req, d)
		}
	}
}

// acknowledged checks an answer to a client: the member has applied the request, after all
// entries that were acknowledged before the request was made, and the answer is the
// expected one. before is the newest entry that was acknowledged when the request was made.
func (w *World) acknowledged(r *pb.InternalRaftRequest, resp any, err error, before ids.Index) {
	index := w.appliedHere[r]
	switch {
	case index == 0:
		w.fail("%v is acknowledged by a member that has not applied it", r)
		return
	case index <= before:
		w.fail("%v is entry %d, although entry %d was acknowledged before the request was made", r, index, before)
	}
	if a := w.answers[index]; a != nil {
		if d := a.differs(resp, err); d != "" && !(w.set.Quota > 0 && isNoSpace(err)) {
			w.fail("a client gets an answer to entry %d that %s", index, d)
		}
	}
	w.acked = max(w.acked, index)
}

// checkModel compares the whole state of a member with the model: keys, leases, alarms.
func (w *World) checkModel(n *node) {
	if w.model.index != n.machine.Applied() {
		w.fail("the model is at entry %d, member %d has applied %d", w.model.index, n.index, n.machine.Applied())
		return
	}
	w.checkRead(n, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}, readMark{})
	var have []lease.ID
	for _, l := range n.lessor.List() {
		have = append(have, l.ID)
		if ttl, there := w.model.leases[l.ID]; !there || ttl != l.TTL {
			w.fail("member %d has the lease %v with a TTL of %d, the model says %d, %v", n.index, l.ID, l.TTL, ttl, there)
		}
		var keys [][]byte
		for _, kv := range w.model.at(w.model.rev, "", "\x00") {
			if lease.ID(kv.Lease) == l.ID {
				keys = append(keys, kv.Key)
			}
		}
		if got := n.lessor.Keys(l.ID); !slices.EqualFunc(got, keys, slices.Equal) {
			w.fail("member %d has the keys %q on lease %v, the model says %q", n.index, got, l.ID, keys)
		}
	}
	if len(have) != len(w.model.leases) {
		w.fail("member %d has the leases %v, the model says %v", n.index, have, w.model.leases)
	}
	if got, want := fmt.Sprint(n.machine.Alarms()), fmt.Sprint(w.model.sortedAlarms()); got != want {
		w.fail("member %d has the alarms %s, the model says %s", n.index, got, want)
	}
}

// forgetLog makes the model continue with a new log. index is the last entry of the old one.
func (w *World) forgetLog(index ids.Index) {
	if w.model.index != index {
		w.fail("the state at entry %d is to be restored, entry %d was applied", index, w.model.index)
	}
	w.model.index, w.acked = 0, 0
	clear(w.answers)
	clear(w.appliedHere)
}
