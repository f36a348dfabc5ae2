package server

import (
	"testing"
	"time"
)

func TestFading(t *testing.T) {
	var f fading
	now, said := time.Unix(0, 0), 0
	for ; now.Before(time.Unix(3600, 0)); now = now.Add(4 * time.Second) {
		if f.due(1, now) {
			said++
		}
	}
	if said < 15 || said > 20 {
		t.Errorf("mentioned %d times in an hour", said)
	}
	if !f.due(2, now) {
		t.Error("another one is new")
	}
	f.forget(1)
	if !f.due(1, now) {
		t.Error("it was well meanwhile")
	}
}
