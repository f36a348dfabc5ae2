package h2

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
)

// frames is a source that returns one frame with each read, as a client sends calls.
type frames struct {
	sizes []int
	rest  []byte
}

func (f *frames) Read(p []byte) (int, error) {
	if len(f.rest) == 0 {
		if len(f.sizes) == 0 {
			return 0, io.EOF
		}
		n := f.sizes[0]
		f.sizes = f.sizes[1:]
		f.rest = append(appendFrameHead(nil, n, frameData, 0, 1), bytes.Repeat([]byte{byte(n)}, n)...)
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// The buffer grows with what a client sends, and an idle connection has a small one again.
func TestReadBuffer(t *testing.T) {
	var sizes []int
	for _, around := range []int{1, firstRead, quietBuffer, 2000, frameBytes - 10} {
		for n := max(0, around-20); n < around+10; n++ {
			sizes = append(sizes, n)
		}
	}
	for range quietReads + 1 {
		sizes = append(sizes, 20)
	}
	for _, slow := range []bool{false, true} {
		var src io.Reader = &frames{sizes: sizes}
		if slow {
			src = iotest.HalfReader(src)
		}
		f := newFrameReader(src, func() {}, func() {})
		for i, n := range sizes {
			x, err := f.next()
			if err != nil || len(x.payload) != n || bytes.Count(x.payload, []byte{byte(n)}) != n {
				t.Fatalf("slow %t, frame %d: got %d bytes, %v, want %d", slow, i, len(x.payload), err, n)
			}
			if i == 0 && len(f.buf) != firstRead {
				t.Errorf("the first buffer has %d bytes", len(f.buf))
			}
		}
		if _, err := f.next(); err != io.EOF || len(f.buf) > quietBuffer {
			t.Errorf("slow %t: at the end: got %v, and a buffer of %d bytes", slow, err, len(f.buf))
		}
	}
}
