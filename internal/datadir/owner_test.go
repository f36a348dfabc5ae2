package datadir

import (
	"errors"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"quorate/internal/durable"
	"quorate/internal/engine"
)

// A directory records its owner and format; every operation that needs the store refuses
// a later format before anything changes.
func TestOwner(t *testing.T) {
	l := Layout{FS: vfs.NewMem(), DataDir: "data"}
	must(t, durable.MkdirAll(l.FS, l.DataDir, l.Member()))
	must(t, l.CheckOwner(1, 2)) // nothing says anything yet
	must(t, l.WriteOwner(1, 2))
	must(t, l.WriteOwner(3, 4)) // it is known
	must(t, l.CheckOwner(1, 2))
	if err := l.CheckOwner(3, 2); err == nil || !strings.Contains(err.Error(), "do not belong together") {
		t.Errorf("another member: %v", err)
	}
	for text, want := range map[string]string{
		"member 1 of cluster 2\n":           "",
		"member 1 of cluster 2\nformat 1\n": "",
		"member 1 of cluster 2\nformat 2\n": "the data directory data has format 2, and this version knows formats up to 1",
		"member 1 of cluster 2\nformat x\n": "names no format",
		"member 1 of cluster 2\nformat 0\n": "names no format",
	} {
		must(t, WriteNote(l.FS, l.Owner(), text))
		_, err := l.Store()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if kerr := l.CheckOwner(1, 2); (kerr == nil) != (err == nil) {
			t.Errorf("%q: CheckOwner: %v", text, kerr)
		}
	}
	must(t, durable.WriteFile(l.FS, l.Owner(), []byte("member 1 of cluster 2\n")))
	var damage *engine.CorruptionError
	if _, err := l.Store(); !errors.As(err, &damage) {
		t.Errorf("without its checksum: %v", err)
	}
}
