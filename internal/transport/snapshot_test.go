package transport

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/protobuf/proto"
)

// zeros returns n zero bytes, then err.
type zeros struct {
	n   int
	err error
}

func (z *zeros) Read(b []byte) (int, error) {
	if z.n == 0 {
		return 0, z.err
	}
	b = b[:min(len(b), z.n)]
	clear(b)
	z.n -= len(b)
	return len(b), nil
}

func (z *zeros) Close() error { return nil }

func TestSnapshot(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	connect(t, a, b)
	m := snapMessage(1, 2, 42)
	const size = 20 << 20
	a.SendSnapshot(m, &zeros{size, io.EOF})
	if err := receive(t, "body", b.host.snapErrs); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, "message", b.host.snapMsgs); !proto.Equal(got, m) {
		t.Errorf("%v", got)
	}
	if got := len(receive(t, "database", b.host.snapData)); got != size {
		t.Errorf("%d bytes", got)
	}
	if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{2, true}) {
		t.Errorf("%+v", r)
	}

	// The source fails midway: the receiver must not mistake that for the end.
	a.SendSnapshot(m, &zeros{size / 2, errors.New("disk gone")})
	if err := receive(t, "body", b.host.snapErrs); err == nil {
		t.Error("a cut database was read to its end")
	}
	if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{2, false}) {
		t.Errorf("%+v", r)
	}

	// The receiver fails after the database.
	b.host.mu.Lock()
	b.host.refuse = fmt.Errorf("%w: too old", ErrSnapshotNotProcessed)
	b.host.mu.Unlock()
	a.SendSnapshot(m, &zeros{10, io.EOF})
	if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{2, false}) {
		t.Errorf("%+v", r)
	}
	// An unknown member.
	a.SendSnapshot(snapMessage(1, 77, 1), &zeros{10, io.EOF})
	if r := receive(t, "report", a.host.snapshots); r != (snapshotReport{77, false}) {
		t.Errorf("%+v", r)
	}
	// The transport stops during the transfer.
	if err := receive(t, "body", b.host.snapErrs); err != nil { // that of the rejected one
		t.Error(err)
	}
	drain(b.host.snapBegun)
	a.SendSnapshot(m, &zeros{1 << 60, io.EOF})
	receive(t, "begin", b.host.snapBegun)
	a.Stop()
	if err := receive(t, "body", b.host.snapErrs); err == nil {
		t.Error("a transfer cut by stop was read to its end")
	}
}
