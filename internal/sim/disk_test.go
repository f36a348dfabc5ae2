package sim

import (
	"strings"
	"testing"

	"quorate/internal/datadir"
	"quorate/internal/durable"
)

// A power loss tears a file that is written in place, but not one that is replaced: of that
// it leaves the old one or the new one, whatever their lengths.
func TestPowerLossAndReplacedFiles(t *testing.T) {
	states := map[string]bool{}
	for seed := uint64(0); seed < 400; seed++ {
		w := newWorld(seed, Faults{TornWrites: 50}, nil)
		d := newDisk(w)
		// One is shorter than the old one, one has several blocks.
		texts := []string{strings.Repeat("old ", 50), "new", strings.Repeat("newer ", 3000)}
		if err := durable.MkdirAll(d, "data"); err != nil {
			t.Fatal(err)
		}
		if err := datadir.WriteNote(d, "data/note", texts[0]); err != nil {
			t.Fatal(err)
		}
		d.countdown = 1 + int(seed%10)
		for _, text := range texts[1:] {
			if err := durable.WriteFile(d, "data/note", []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if d.picture == nil {
			continue
		}
		b, err := read(d.picture, "data/note")
		if err != nil {
			t.Fatal(err)
		}
		state := string(b)
		if note, err := datadir.ReadNote(d.picture, "data/note"); err == nil {
			state = note
		}
		states[state] = true
		if state != texts[0] && state != texts[1] && state != texts[2] {
			t.Fatalf("seed %d: after the power loss the file holds %.300q", seed, state)
		}
	}
	if len(states) != 3 {
		t.Errorf("%d of 3 states were seen", len(states))
	}
}
