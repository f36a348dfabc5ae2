package v2store

import (
	"slices"
	"testing"

	"quorate/internal/engine/mem"
)

// The first step after a Rebase records everything that led to it.
func TestStepRecordsWhatRebaseHasLeft(t *testing.T) {
	eng := mem.New()
	defer eng.Close()
	s, err := Load(eng, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s.Rebase(nil, 3)
	b := eng.NewBatch()
	s.Step(b, 2)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	again, err := Load(eng, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if again.Index() != 5 || again.history.start != s.history.start || !slices.Equal(again.history.events, s.history.events) {
		t.Errorf("index %d, history %+v; before the restart %d, %+v", again.Index(), again.history, s.Index(), s.history)
	}
}
