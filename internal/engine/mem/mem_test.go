package mem

import (
	"context"
	"testing"

	"quorate/internal/engine"
	"quorate/internal/engine/enginetest"
)

func subject(e *Engine) *enginetest.Subject {
	return &enginetest.Subject{
		Engine: e,
		Crash:  func(*testing.T) *enginetest.Subject { return subject(e.Crash()) },
		OpenCheckpoint: func(t *testing.T, dir string) engine.Engine {
			c, err := e.OpenCheckpoint(dir)
			if err != nil {
				t.Fatal(err)
			}
			return c
		},
		Dir: func(name string) string { return name },
	}
}

func TestContract(t *testing.T) {
	enginetest.Run(t, func(*testing.T) *enginetest.Subject { return subject(New()) })
}

// A crash of the in-memory engine is exact: nothing after the last Flush survives.
func TestCrashIsExact(t *testing.T) {
	e := New()
	for _, k := range []string{"a", "b"} {
		b := e.NewBatch()
		b.Set([]byte(k), nil)
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if k == "a" {
			if err := e.Flush(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := e.Crash()
	if _, err := c.Get(nil, []byte("a")); err != nil {
		t.Errorf("flushed key: %v", err)
	}
	if _, err := c.Get(nil, []byte("b")); err != engine.ErrNotFound {
		t.Errorf("key that was not flushed: %v", err)
	}
}
