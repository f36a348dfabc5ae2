package h2

import "testing"

// A connection with small replies keeps its buffer.
func TestSmallRepliesNeedNoMemory(t *testing.T) {
	for _, size := range []int{100, 192, 300, 400, 450, keepBuffer} {
		w := &flusher{buf: make([]byte, 0, firstBuffer)}
		reply := make([]byte, size)
		once := func() {
			w.room(len(reply))
			w.buf = append(w.buf, reply...)
			w.buf = w.buf[:0]
			w.settle()
		}
		once()
		if n := testing.AllocsPerRun(100, once); n > 0 {
			t.Errorf("replies of %d bytes: %.1f allocations each", size, n)
		}
		if cap(w.buf) > keepBuffer {
			t.Errorf("replies of %d bytes: a buffer of %d bytes is kept", size, cap(w.buf))
		}
	}
}
