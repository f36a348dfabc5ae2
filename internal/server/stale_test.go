package server

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"quorate/internal/apply"
	"quorate/internal/engine"
	"quorate/internal/engine/pebble"
)

// A snapshot may replace a log that extends further but has entries of a leader that lost. If
// power is lost before the log is reset, the next start resets it; a store that was not just
// installed is rejected with such a log.
func TestStoreBesideAnotherLog(t *testing.T) {
	for _, installed := range []bool{true, false} {
		c := newCluster(t, 1, nil)
		n := c.nodes[0]
		n.put("k", "v")
		n.stop()
		eng, err := pebble.Open("data/member/store", pebble.Options{FS: n.fs})
		if err != nil {
			t.Fatal(err)
		}
		applied, term, err := apply.Position(eng)
		if err != nil {
			t.Fatal(err)
		}
		b := eng.NewBatch()
		b.Set(engine.Meta.K([]byte("term")), binary.BigEndian.AppendUint64(nil, uint64(term+1)))
		if installed {
			b.Set(engine.Local.K([]byte("installed")), binary.BigEndian.AppendUint64(nil, uint64(applied)))
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := eng.Flush(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := eng.Close(); err != nil {
			t.Fatal(err)
		}
		m, err := Open(background(t), n.config())
		if !installed {
			if err == nil || !strings.Contains(err.Error(), "has another entry there") {
				t.Fatalf("open: %v, want that the log has another entry", err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("open after the crash: %v", err)
		}
		if mark := m.log.Mark(); mark.Index != applied || mark.Term != term+1 {
			t.Errorf("the log begins at %d of term %d, want %d of %d", mark.Index, mark.Term, applied, term+1)
		}
		m.Start()
		<-m.Ready()
		m.Stop()
	}
}
