package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"go.etcd.io/raft/v3/raftpb"

	"quorate/internal/ids"
)

// Limits of what a peer may make this member allocate.
const (
	// maxMessageBytes bounds one message, or all entries of one AppEntries frame.
	maxMessageBytes = 512 << 20
	// maxEnvelopeBytes bounds the message in front of a snapshot's database.
	maxEnvelopeBytes = 64 << 20
	// maxFrameEntries bounds the number of entries of one AppEntries frame.
	// raft sends at most 512 KiB of entries at a time, or one large entry.
	maxFrameEntries = 1 << 20
	// readStep is how many bytes are allocated ahead of those that have
	// arrived.
	readStep = 1 << 20
)

// errFrameTooLarge ends a stream with a length prefix that exceeds its
// limit.
var errFrameTooLarge = errors.New("transport: frame exceeds its size limit")

// isLinkHeartbeat reports whether m is the heartbeat of an idle stream: one
// that raft would never send, as it has neither sender nor receiver.
func isLinkHeartbeat(m *raftpb.Message) bool {
	return m.GetType() == raftpb.MsgHeartbeat && m.GetFrom() == 0 && m.GetTo() == 0
}

// An encoder appends frames of one stream. It belongs to one connection.
type encoder interface {
	message(b []byte, m *raftpb.Message) ([]byte, error)
	heartbeat(b []byte) []byte
}

// A decoder reads frames of one stream. It belongs to one connection.
type decoder interface {
	// next returns the next message, nil for a link heartbeat, and the size of
	// its frame in bytes. The message owns its bytes.
	next() (m *raftpb.Message, size int, err error)
}

// plainEncoder writes the message stream: length, message.
type plainEncoder struct{}

func (plainEncoder) message(b []byte, m *raftpb.Message) ([]byte, error) {
	return appendPrefixed(b, m)
}

func (plainEncoder) heartbeat(b []byte) []byte {
	return append(b, 0, 0, 0, 0, 0, 0, 0, 2, msgType<<3, byte(raftpb.MsgHeartbeat))
}

// appendPrefixed appends the length of m, 8 bytes big endian, and m.
func appendPrefixed(b []byte, m *raftpb.Message) ([]byte, error) {
	at := len(b)
	b, err := appendMessage(append(b, 0, 0, 0, 0, 0, 0, 0, 0), m)
	if err != nil {
		return b[:at], err
	}
	binary.BigEndian.PutUint64(b[at:], uint64(len(b)-at-8))
	return b, nil
}

// plainDecoder reads the message stream.
type plainDecoder struct{ r *bufio.Reader }

func (d plainDecoder) next() (*raftpb.Message, int, error) {
	m, n, err := readPrefixed(d.r, maxMessageBytes)
	if err != nil {
		return nil, n, err
	}
	if isLinkHeartbeat(m) {
		return nil, n, nil
	}
	return m, n, nil
}

func readUint64(r io.Reader) (uint64, error) {
	if br, ok := r.(*bufio.Reader); ok { // no allocation on the hot path
		p, err := br.Peek(8)
		if err != nil {
			if len(p) > 0 && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		v := binary.BigEndian.Uint64(p)
		_, err = br.Discard(8)
		return v, err
	}
	var b [8]byte
	_, err := io.ReadFull(r, b[:])
	return binary.BigEndian.Uint64(b[:]), err
}

// readPrefixed reads a length and a message of at most limit bytes.
func readPrefixed(r io.Reader, limit uint64) (m *raftpb.Message, size int, err error) {
	n, err := readUint64(r)
	if err != nil {
		return nil, 0, err
	}
	if n > limit {
		return nil, 8, fmt.Errorf("%w: message of %d bytes", errFrameTooLarge, n)
	}
	b, err := readBytes(r, int(n))
	if err != nil {
		return nil, 8, err
	}
	m, err = decodeMessage(b)
	return m, 8 + int(n), err
}

// readBytes reads n bytes into a new slice. A large slice grows as bytes
// arrive, so that a false length costs no memory.
func readBytes(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, min(n, readStep))
	_, err := io.ReadFull(r, b)
	for err == nil && len(b) < n {
		at := len(b)
		grown := make([]byte, min(n, 2*at))
		copy(grown, b)
		b = grown
		_, err = io.ReadFull(r, b[at:])
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the length was read already
	}
	return b, err
}

// First bytes of the frames of the msgapp stream.
const (
	frameHeartbeat  = 0
	frameAppEntries = 1
	frameMsgApp     = 2
)

// appEncoder writes the msgapp stream. In the steady state a MsgApp continues
// exactly where the previous one ended, and only entries and commit index are
// sent.
type appEncoder struct {
	term, index uint64 // of the last entry sent; zero on a fresh connection
}

func (e *appEncoder) heartbeat(b []byte) []byte { return append(b, frameHeartbeat) }

func (e *appEncoder) message(b []byte, m *raftpb.Message) ([]byte, error) {
	if e.index == m.GetIndex() && e.term == m.GetLogTerm() && m.GetLogTerm() == m.GetTerm() {
		return e.appEntries(b, m), nil
	}
	at := len(b)
	b, err := appendPrefixed(append(b, frameMsgApp), m)
	if err != nil {
		return b[:at], err
	}
	e.term, e.index = m.GetTerm(), m.GetIndex()
	if n := len(m.Entries); n > 0 {
		e.index = m.Entries[n-1].GetIndex()
	}
	return b, nil
}

func (e *appEncoder) appEntries(b []byte, m *raftpb.Message) []byte {
	b = append(b, frameAppEntries)
	b = binary.BigEndian.AppendUint64(b, uint64(len(m.Entries)))
	for _, ent := range m.Entries {
		at := len(b)
		b = appendEntry(append(b, 0, 0, 0, 0, 0, 0, 0, 0), ent)
		binary.BigEndian.PutUint64(b[at:], uint64(len(b)-at-8))
	}
	e.index += uint64(len(m.Entries))
	return binary.BigEndian.AppendUint64(b, m.GetCommit())
}

// appDecoder reads the msgapp stream and mirrors the state of the encoder.
type appDecoder struct {
	r             *bufio.Reader
	local, remote ids.Member
	term, index   uint64
}

func (d *appDecoder) next() (*raftpb.Message, int, error) {
	typ, err := d.r.ReadByte()
	if err != nil {
		return nil, 0, err
	}
	switch typ {
	case frameHeartbeat:
		return nil, 1, nil
	case frameAppEntries:
		m, n, err := d.appEntries()
		return m, 1 + n, within(err)
	case frameMsgApp:
		m, n, err := readPrefixed(d.r, maxMessageBytes)
		if err != nil {
			return nil, 1 + n, within(err)
		}
		d.term, d.index = m.GetTerm(), m.GetIndex()
		if n := len(m.Entries); n > 0 {
			d.index = m.Entries[n-1].GetIndex()
		}
		return m, 1 + n, nil
	default:
		return nil, 1, fmt.Errorf("transport: unknown frame type %d in a msgapp stream", typ)
	}
}

// within marks an end of file inside a frame as unexpected.
func within(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (d *appDecoder) appEntries() (*raftpb.Message, int, error) {
	count, err := readUint64(d.r)
	if err != nil {
		return nil, 0, err
	}
	if count > maxFrameEntries {
		return nil, 8, fmt.Errorf("%w: %d entries", errFrameTooLarge, count)
	}
	s := &messageSlab{typ: raftpb.MsgApp, to: uint64(d.local), from: uint64(d.remote), term: d.term, logTerm: d.term, index: d.index}
	m := &s.m
	m.Type, m.To, m.From, m.Term, m.LogTerm, m.Index, m.Commit = &s.typ, &s.to, &s.from, &s.term, &s.logTerm, &s.index, &s.commit
	size := 8
	var (
		alloc entryAlloc
		data  dataAlloc
	)
	m.Entries = make([]*raftpb.Entry, 0, min(count, 4*maxSlabRun))
	for left := int(count); left > 0; left-- {
		n, err := readUint64(d.r)
		if err != nil {
			return nil, size, err
		}
		if size += 8; n > maxMessageBytes || size+int(n) > maxMessageBytes {
			return nil, size, fmt.Errorf("%w: entries of more than %d bytes", errFrameTooLarge, maxMessageBytes)
		}
		b, err := data.read(d.r, int(n), left)
		if err != nil {
			return nil, size, err
		}
		ent, err := decodeEntry(b, alloc.next(left))
		if err != nil {
			return nil, size, err
		}
		m.Entries = append(m.Entries, ent)
		size += int(n)
		d.index++
	}
	if s.commit, err = readUint64(d.r); err != nil {
		return nil, size, err
	}
	return m, size + 8, nil
}

// dataAlloc allocates the data of the entries of one frame, many per
// allocation if they are small. They have the same lifetime, as neighbours in
// the log.
type dataAlloc struct{ block []byte }

const maxDataBlock = 64 << 10

// read returns n bytes of r; left is the number of entries still to read,
// including this one, which are assumed to be of similar size.
func (a *dataAlloc) read(r io.Reader, n, left int) ([]byte, error) {
	if n > maxDataBlock {
		return readBytes(r, n)
	}
	if n > len(a.block) {
		a.block = make([]byte, min(n*left, max(n, maxDataBlock)))
	}
	b := a.block[:n:n]
	a.block = a.block[n:]
	_, err := io.ReadFull(r, b)
	return b, within(err)
}
