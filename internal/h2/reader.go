package h2

import (
	"encoding/binary"
	"io"
	"sync"
)

// frameReader cuts a byte stream into frames. While nothing comes it holds a
// small buffer; a large one is borrowed for as long as there is a use for it.
type frameReader struct {
	src io.Reader
	buf []byte // of which [r:w] is unread
	r   int
	w   int
	// small is what buf is while the connection is quiet.
	small []byte
	quiet int // reads in a row for which the small buffer would have done
	// onRead is called after each read of the source.
	onRead func()
	// beforeRead is called before a read that may block.
	beforeRead func()
}

const (
	quietBuffer = 512      // a header and a small message
	busyBuffer  = 32 << 10 // holds a frame of the largest size
	// quietReads is how many small reads in a row make a connection quiet.
	quietReads = 64
)

var readBuffers = sync.Pool{New: func() any { b := make([]byte, busyBuffer); return &b }}

func newFrameReader(src io.Reader, beforeRead, onRead func()) *frameReader {
	small := make([]byte, quietBuffer)
	return &frameReader{src: src, buf: small, small: small, beforeRead: beforeRead, onRead: onRead}
}

// need makes n unread bytes available. n is not above busyBuffer.
func (f *frameReader) need(n int) error {
	for f.w-f.r < n {
		if f.r == f.w {
			f.r, f.w = 0, 0
			if n <= len(f.small) && f.quiet >= quietReads {
				f.release()
			}
		}
		if f.r+n > len(f.buf) || f.w == len(f.buf) {
			f.makeRoom(n)
		}
		f.beforeRead()
		k, err := f.src.Read(f.buf[f.w:])
		f.w += k
		if f.quiet++; k > len(f.small) {
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
			f.borrow() // there is more to come than a quiet connection sends
		}
	}
	return nil
}

func (f *frameReader) makeRoom(n int) {
	if n > len(f.buf) {
		f.borrow()
		return
	}
	copy(f.buf, f.buf[f.r:f.w])
	f.w -= f.r
	f.r = 0
}

func (f *frameReader) borrow() {
	big := *readBuffers.Get().(*[]byte)
	f.w = copy(big, f.buf[f.r:f.w])
	f.r = 0
	f.buf, f.quiet = big, 0
}

func (f *frameReader) release() {
	if len(f.buf) == busyBuffer {
		b := f.buf
		readBuffers.Put(&b)
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

// preface reads the client's first words.
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
