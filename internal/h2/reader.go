package h2

import (
	"encoding/binary"
	"io"
	"sync"
)

// frameReader cuts a byte stream into frames. An idle connection holds a small buffer; a
// busy one borrows a large buffer from a pool.
type frameReader struct {
	src io.Reader
	buf []byte // buf[r:w] is unread
	r   int
	w   int
	// small is the buffer of an idle connection. It grows once, to quietBuffer.
	small []byte
	quiet int // consecutive reads for which the small buffer would have sufficed
	// onRead is called after each read of the source.
	onRead func()
	// beforeRead is called before a read that may block.
	beforeRead func()
}

const (
	firstRead   = 256      // headers and a very small message
	quietBuffer = 512      // headers and a small message
	busyBuffer  = 32 << 10 // holds the largest frame
	// quietReads is the number of consecutive small reads after which the large buffer
	// is returned.
	quietReads = 64
)

var readBuffers = sync.Pool{New: func() any { return new([busyBuffer]byte) }}

func newFrameReader(src io.Reader, beforeRead, onRead func()) *frameReader {
	small := make([]byte, firstRead)
	return &frameReader{src: src, buf: small, small: small, beforeRead: beforeRead, onRead: onRead}
}

// need reads until n bytes are unread. n must not exceed busyBuffer.
func (f *frameReader) need(n int) error {
	for f.w-f.r < n {
		if f.r == f.w {
			f.r, f.w = 0, 0
			if n <= quietBuffer && f.quiet >= quietReads {
				f.release()
			}
		}
		if f.r+n > len(f.buf) || f.w == len(f.buf) {
			f.makeRoom(n)
		}
		f.beforeRead()
		k, err := f.src.Read(f.buf[f.w:])
		f.w += k
		if f.quiet++; k > quietBuffer {
			f.quiet = 0
		}
		f.onRead()
		if err != nil && f.w-f.r < n {
			if err == io.EOF && f.w > f.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if f.w == len(f.buf) && len(f.buf) == len(f.small) {
			f.grow() // more is coming
		}
	}
	return nil
}

func (f *frameReader) makeRoom(n int) {
	switch {
	case n > quietBuffer && n > len(f.buf):
		f.borrow()
		return
	case n > len(f.buf):
		f.grow()
		return
	}
	copy(f.buf, f.buf[f.r:f.w])
	f.w -= f.r
	f.r = 0
}

// grow replaces the first buffer by that of an idle connection, and that one by a large
// buffer: more is coming than an idle connection sends.
func (f *frameReader) grow() {
	if len(f.small) == quietBuffer {
		f.borrow()
		return
	}
	f.small = make([]byte, quietBuffer)
	f.moveTo(f.small)
}

func (f *frameReader) borrow() {
	f.moveTo(readBuffers.Get().(*[busyBuffer]byte)[:])
	f.quiet = 0
}

func (f *frameReader) moveTo(buf []byte) {
	f.w = copy(buf, f.buf[f.r:f.w])
	f.r, f.buf = 0, buf
}

func (f *frameReader) release() {
	if len(f.buf) == busyBuffer {
		readBuffers.Put((*[busyBuffer]byte)(f.buf))
		f.buf = f.small
	}
}

// next returns the next frame.
func (f *frameReader) next() (frame, error) {
	if err := f.need(frameHeadLen); err != nil {
		return frame{}, err
	}
	h := f.buf[f.r : f.r+frameHeadLen]
	n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	x := frame{kind: h[3], flags: h[4], stream: binary.BigEndian.Uint32(h[5:]) & maxStreamID}
	if n > frameBytes {
		return x, &connError{codeFrameSize, "frame too large"}
	}
	if err := f.need(frameHeadLen + n); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return x, err
	}
	x.payload = f.buf[f.r+frameHeadLen : f.r+frameHeadLen+n]
	f.r += frameHeadLen + n
	return x, nil
}

// preface reads and checks the client connection preface.
func (f *frameReader) preface() error {
	if err := f.need(len(preface)); err != nil {
		return err
	}
	if string(f.buf[f.r:f.r+len(preface)]) != preface {
		return &connError{codeProtocol, "the client does not speak HTTP/2"}
	}
	f.r += len(preface)
	return nil
}
