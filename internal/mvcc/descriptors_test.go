package mvcc

import (
	"fmt"
	"syscall"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/descriptors"
	"quorate/internal/engine"
	"quorate/internal/engine/mem"
)

// scarceEngine fails some reads for lack of file descriptors.
type scarceEngine struct {
	*mem.Engine
	fail int
}

func (e *scarceEngine) Get(dst, key []byte) ([]byte, error) {
	if e.fail > 0 {
		e.fail--
		return dst, fmt.Errorf("open a table: %w", syscall.EMFILE)
	}
	return e.Engine.Get(dst, key)
}

var _ engine.Engine = (*scarceEngine)(nil)

// A read without a file descriptor fails, except in a transaction: that is executed as it is by
// the other members.
func TestReadsWithoutDescriptor(t *testing.T) {
	e := &scarceEngine{Engine: mem.New()}
	s, err := Open(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := e.NewBatch()
	txn := s.Begin(b)
	txn.Put([]byte("k"), []byte("v"), 0)
	txn.End()
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	s.Publish()
	v := s.View()
	defer v.Close()
	e.fail = 1
	if _, err := v.Get([]byte("k"), 0); !descriptors.Exhausted(err) {
		t.Errorf("View.Get: %v", err)
	}
	b = e.NewBatch()
	defer b.Discard()
	txn = s.Begin(b)
	defer txn.End()
	e.fail = 3
	if kv, err := txn.Get([]byte("k")); err != nil || kv == nil || e.fail != 0 {
		t.Errorf("Txn.Get: %q, %v", kv, err)
	}
	e.fail = 3
	if r, err := txn.Range(&pb.RangeRequest{Key: []byte("k")}); err != nil || r.Count != 1 || e.fail != 0 {
		t.Errorf("Txn.Range: %v, %v", r, err)
	}
}
