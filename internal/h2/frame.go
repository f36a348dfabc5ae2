package h2

import (
	"encoding/binary"
	"fmt"
)

// Frame types, RFC 9113 section 6.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameRSTStream    = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9
)

const (
	flagEndStream  = 0x1 // DATA, HEADERS
	flagAck        = 0x1 // SETTINGS, PING
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings, section 6.5.2.
const (
	settingHeaderTableSize      = 0x1
	settingEnablePush           = 0x2
	settingMaxConcurrentStreams = 0x3
	settingInitialWindowSize    = 0x4
	settingMaxFrameSize         = 0x5
	settingMaxHeaderListSize    = 0x6
)

// errCode is an error code of RFC 9113 section 7.
type errCode uint32

const (
	codeNo              errCode = 0x0
	codeProtocol        errCode = 0x1
	codeInternal        errCode = 0x2
	codeFlowControl     errCode = 0x3
	codeStreamClosed    errCode = 0x5
	codeFrameSize       errCode = 0x6
	codeRefusedStream   errCode = 0x7
	codeCancel          errCode = 0x8
	codeCompression     errCode = 0x9
	codeEnhanceYourCalm errCode = 0xb
)

const (
	frameHeadLen = 9
	maxStreamID  = 1<<31 - 1
	maxWindow    = 1<<31 - 1
	// defaultWindow is the flow-control window of a connection, and of each of its
	// streams, before any SETTINGS or WINDOW_UPDATE.
	defaultWindow = 1<<16 - 1
)

// preface is the client connection preface.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frame is a received frame. Its payload is valid until the next frame is read.
type frame struct {
	kind, flags byte
	stream      uint32
	payload     []byte
}

func (f *frame) has(flag byte) bool { return f.flags&flag != 0 }

// connError is a connection error. The client gets a GOAWAY with the code and text.
type connError struct {
	code errCode
	text string
}

func (e *connError) Error() string {
	return fmt.Sprintf("h2: connection error %d: %s", e.code, e.text)
}

// unpad returns the payload without its padding.
func unpad(f *frame) ([]byte, error) {
	p := f.payload
	if !f.has(flagPadded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, &connError{codeFrameSize, "padded frame without its length of padding"}
	}
	n := int(p[0])
	p = p[1:]
	if n > len(p) {
		return nil, &connError{codeProtocol, "more padding than payload"}
	}
	return p[:len(p)-n], nil
}

func appendFrameHead(b []byte, n int, kind, flags byte, stream uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags,
		byte(stream>>24), byte(stream>>16), byte(stream>>8), byte(stream))
}

func appendSettings(b []byte, settings ...[2]uint32) []byte {
	b = appendFrameHead(b, 6*len(settings), frameSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s[0]))
		b = binary.BigEndian.AppendUint32(b, s[1])
	}
	return b
}

func appendSettingsAck(b []byte) []byte { return appendFrameHead(b, 0, frameSettings, flagAck, 0) }

func appendWindowUpdate(b []byte, stream, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHead(b, 4, frameWindowUpdate, 0, stream), n)
}

func appendReset(b []byte, stream uint32, code errCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrameHead(b, 4, frameRSTStream, 0, stream), uint32(code))
}

func appendPing(b []byte, flags byte, data []byte) []byte {
	return append(appendFrameHead(b, 8, framePing, flags, 0), data...)
}

func appendGoAway(b []byte, last uint32, code errCode, text string) []byte {
	b = appendFrameHead(b, 8+len(text), frameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, text...)
}

// appendHeaders appends a header block as one HEADERS frame and as many CONTINUATION
// frames as needed.
func appendHeaders(b, block []byte, endStream bool, stream uint32) []byte {
	kind, flags := byte(frameHeaders), byte(0)
	if endStream {
		flags = flagEndStream
	}
	for len(block) > frameBytes {
		b = append(appendFrameHead(b, frameBytes, kind, flags, stream), block[:frameBytes]...)
		block = block[frameBytes:]
		kind, flags = frameContinuation, 0
	}
	return append(appendFrameHead(b, len(block), kind, flags|flagEndHeaders, stream), block...)
}
