package sim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/apply"
	"quorate/internal/datadir"
	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/replica"
	"quorate/internal/snapshot"
)

const (
	truncateDelay = 50 * time.Millisecond
	releaseDelay  = 2e9
)

var (
	errCut      = errors.New("sim: the connection was cut")
	errExchange = errors.New("sim: power lost during the exchange")
)

// sendSnapshot sends the current state of the store. The transfer takes a while and may be
// cut off in the middle.
func (n *node) sendSnapshot(m *raftpb.Message) {
	w := n.w
	state := n.machine.Engine().NewSnapshot()
	defer state.Close()
	meta, data, err := datadir.Describe(state, n.release, false)
	if err != nil {
		w.fail("describe the state of member %d: %w", n.index, err)
		return
	}
	m.Snapshot = &raftpb.Snapshot{Data: data, Metadata: meta}
	var file bytes.Buffer
	image, err := snapshot.Measure(context.Background(), state, snapshot.Options{FS: n.disk, WithDigest: true, Sealed: true})
	if err == nil {
		err = image.WriteTo(context.Background(), &file)
	}
	if err != nil {
		w.fail("write a snapshot of member %d: %w", n.index, err)
		return
	}
	envelope, err := proto.Marshal(m)
	if err != nil {
		w.fail("encode snapshot message: %w", err)
		return
	}
	n.sending++
	n.later(releaseDelay, func() { n.sending-- })
	report := func(ok bool) {
		n.later(0, func() {
			n.step(replica.Input{Snapshots: []replica.SnapshotReport{{To: ids.Member(m.GetTo()), OK: ok}}})
		})
	}
	body := io.Reader(bytes.NewReader(file.Bytes()))
	if w.chance(w.faults.CutTransfers) {
		body = io.MultiReader(io.LimitReader(body, int64(w.rng.IntN(file.Len()))), cutOff{})
	}
	w.after(w.between(w.faults.MaxDelay, 20*w.faults.MaxDelay), func() {
		to := w.byID[ids.Member(m.GetTo())]
		ok := to != nil && !to.down && !w.cut[[2]int{n.index, to.index}] && to.receiveSnapshot(envelope, body)
		w.log("snapshot %d %d>%x %v", meta.GetIndex(), n.index, m.GetTo(), ok)
		report(ok)
	})
}

type cutOff struct{}

func (cutOff) Read([]byte) (int, error) { return 0, errCut }

// receiveSnapshot stores the snapshot and passes the message to raft.
func (n *node) receiveSnapshot(envelope []byte, body io.Reader) bool {
	m := &raftpb.Message{}
	if err := proto.Unmarshal(envelope, m); err != nil {
		n.w.fail("decode snapshot message: %w", err)
		return false
	}
	n.received++
	cut := false
	ok := n.attempt("reception", func() error {
		err := n.home.Receive(context.Background(), ids.Index(m.GetSnapshot().GetMetadata().GetIndex()), n.received, body)
		if cut = errors.Is(err, errCut); cut {
			return nil
		}
		return err
	})
	if ok && !cut {
		n.step(replica.Input{Recv: []*raftpb.Message{m}})
	}
	return ok && !cut
}

// exchange switches to the imported store.
func (n *node) exchange(meta *raftpb.SnapshotMetadata) error {
	var eng engine.Engine
	old, oldDir := n.machine, n.dir
	ok := n.attempt("exchange", func() (err error) {
		if eng, n.dir, err = n.home.Exchange(ids.Index(meta.GetIndex())); err != nil {
			return err
		}
		n.machine, err = n.openMachine(eng)
		return err
	})
	if !ok {
		return errExchange
	}
	old.Close()
	n.pipe.Settler.Restored(apply.History{KV: n.machine.KV()}, n.machine.Applied())
	n.later(n.w.between(0, 10*n.w.faults.SyncDelay), func() {
		n.attempt("removal of the replaced store", func() error { return n.home.Retire(oldDir, ids.Index(meta.GetIndex())) })
	})
	return nil
}
