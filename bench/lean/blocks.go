package lean

import (
	"bytes"
	"fmt"
	"net/url"
	"strconv"

	"golang.org/x/net/http2/hpack"
)

// timeout is the deadline of each call as gRPC clients send it: it is never reached, and costs the server what
// deadlines cost.
const timeout = "3M"

// requestBlocks are the encoded headers of calls. A block is encoded anew for the first two calls of a method;
// the second finds all its fields in the server's table, and is cached.
type requestBlocks struct {
	fields []hpack.HeaderField // without the path
	buf    bytes.Buffer
	enc    *hpack.Encoder
	ready  map[string][]byte // blocks that do not change the table
}

func (r *requestBlocks) init(scheme, authority string, metadata [][2]string) {
	for _, f := range append([][2]string{{":method", "POST"}, {":scheme", scheme}, {":authority", authority},
		{"content-type", "application/grpc"}, {"user-agent", "grpc-go/1.80.0"}, {"te", "trailers"}, {"grpc-timeout", timeout}}, metadata...) {
		r.fields = append(r.fields, hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	r.enc = hpack.NewEncoder(&r.buf)
	r.ready = map[string][]byte{}
}

func (r *requestBlocks) of(method string) []byte {
	if b := r.ready[method]; b != nil {
		return b
	}
	r.buf.Reset()
	for i, f := range r.fields {
		if i == 2 { // pseudo headers come first
			r.write(hpack.HeaderField{Name: ":path", Value: method})
		}
		r.write(f)
	}
	b := bytes.Clone(r.buf.Bytes())
	if changesTable(b) {
		clear(r.ready) // the indexes of all other fields have changed
	} else {
		r.ready[method] = b
	}
	return b
}

func (r *requestBlocks) write(f hpack.HeaderField) {
	if err := r.enc.WriteField(f); err != nil {
		panic(fmt.Sprintf("lean: a buffer does not take %q: %v", f.Name, err))
	}
}

// answer is a decoded header block of the server.
type answer struct {
	http      string
	hasStatus bool
	status    Status
}

// answerBlocks decodes the headers of answers. Nearly all of them are one of two blocks, which are looked up by
// their bytes.
type answerBlocks struct {
	dec   *hpack.Decoder
	last  answer
	known []knownBlock
}

type knownBlock struct {
	block []byte
	says  answer
}

const maxKnownBlocks = 8

func (r *answerBlocks) init() { r.dec = hpack.NewDecoder(4096, r.field) }

func (r *answerBlocks) field(f hpack.HeaderField) {
	switch f.Name {
	case ":status":
		r.last.http = f.Value
	case "grpc-status":
		n, err := strconv.Atoi(f.Value)
		if err != nil {
			n = internal
		}
		r.last.hasStatus, r.last.status.Code = true, n
	case "grpc-message":
		text, err := url.PathUnescape(f.Value)
		if err != nil {
			text = f.Value
		}
		r.last.status.Message = text
	}
}

func (r *answerBlocks) decode(block []byte) (answer, error) {
	for i := range r.known {
		if bytes.Equal(r.known[i].block, block) {
			return r.known[i].says, nil
		}
	}
	r.last = answer{}
	if _, err := r.dec.Write(block); err != nil {
		return answer{}, fmt.Errorf("lean: headers of the server: %w", err)
	}
	if err := r.dec.Close(); err != nil {
		return answer{}, fmt.Errorf("lean: headers of the server: %w", err)
	}
	switch {
	case changesTable(block):
		r.known = r.known[:0] // other blocks may mean something else now
	case len(r.known) < maxKnownBlocks:
		r.known = append(r.known, knownBlock{bytes.Clone(block), r.last})
	}
	return r.last, nil
}

// changesTable reports whether a block of HPACK, which must be valid, changes the dynamic table.
func changesTable(b []byte) bool {
	for len(b) > 0 {
		first := b[0]
		switch {
		case first&0x80 != 0: // indexed
			_, b = integer(b, 7)
		case first&0xf0 == 0, first&0xf0 == 0x10: // a literal that is not indexed
			var name uint64
			if name, b = integer(b, 4); name == 0 {
				b = skipText(b)
			}
			b = skipText(b)
		default:
			return true
		}
	}
	return false
}

// integer decodes an integer whose prefix has the given number of bits in the first byte.
func integer(b []byte, bits uint) (uint64, []byte) {
	if len(b) == 0 {
		return 0, nil
	}
	most := uint64(1)<<bits - 1
	v := uint64(b[0]) & most
	b = b[1:]
	if v < most {
		return v, b
	}
	for shift := uint(0); len(b) > 0 && shift < 56; shift += 7 {
		x := b[0]
		b = b[1:]
		v += uint64(x&0x7f) << shift
		if x&0x80 == 0 {
			break
		}
	}
	return v, b
}

func skipText(b []byte) []byte {
	n, b := integer(b, 7)
	return b[min(n, uint64(len(b))):]
}
