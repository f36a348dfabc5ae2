package h2

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// fieldList is an outgoing header block. It uses only HPACK's static table: the bytes
// this costs are cheaper than a stateful encoder and its lock, and blocks can be
// prepared in advance.
type fieldList struct {
	block []byte
	size  int64 // as HTTP/2 counts it
}

const (
	status200   = 0x88 // indexed field ":status: 200" of the static table
	nameStatus  = 0x08 // ":status" from the static table, literal value, not indexed
	emptyTable  = 0x20 // dynamic table size update to 0
	fieldExtra  = 32   // overhead per field in the header list size
	grpcStatus  = "grpc-status"
	grpcMessage = "grpc-message"
	grpcDetails = "grpc-status-details-bin"
)

// The header and trailer of a successful call without metadata.
var (
	plainHeader, plainTrailer []byte
	plainSize                 int64 // of the larger of the two
)

func init() {
	var h, t fieldList
	h.head("")
	t.status(okStatus)
	plainHeader, plainTrailer, plainSize = h.block, t.block, max(h.size, t.size)
}

func (l *fieldList) count(name, value string) {
	l.size += int64(len(name)+len(value)) + fieldExtra
}

// add appends a literal field that is not indexed.
func (l *fieldList) add(name, value string) {
	l.count(name, value)
	l.block = appendText(append(l.block, 0), name)
	l.block = appendText(l.block, value)
}

// head appends the fields that start every response.
func (l *fieldList) head(subtype string) {
	l.count(":status", "200")
	l.block = append(l.block, status200)
	l.contentType(subtype)
}

func (l *fieldList) contentType(subtype string) {
	v := baseContentType
	if subtype != "" {
		v += "+" + subtype
	}
	l.add("content-type", v)
}

// early appends the complete trailers-only response to a rejected call.
func (l *fieldList) early(http int, subtype string, st *status.Status) {
	l.count(":status", "200")
	l.block = appendText(append(l.block, nameStatus), strconv.Itoa(http))
	l.contentType(subtype)
	l.status(st)
}

func (l *fieldList) status(st *status.Status) {
	var f statusFields
	f.of(st)
	for _, x := range f {
		l.add(x.Name, x.Value)
	}
}

// statusFields are the trailer fields that carry the status of a call.
type statusFields []hpack.HeaderField

func (f *statusFields) of(st *status.Status) {
	*f = append(*f, hpack.HeaderField{Name: grpcStatus, Value: strconv.Itoa(int(st.Code()))},
		hpack.HeaderField{Name: grpcMessage, Value: encodeMessage(st.Message())})
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if b, err := proto.Marshal(p); err == nil {
			*f = append(*f, hpack.HeaderField{Name: grpcDetails, Value: base64.RawStdEncoding.EncodeToString(b)})
		}
	}
}

func (l *fieldList) metadata(md metadata.MD) {
	for name, values := range md {
		if reserved(name) {
			continue // gRPC's own names, which would confuse clients
		}
		for _, v := range values {
			l.add(name, encodeMetadata(name, v))
		}
	}
}

// appendText appends an HPACK string without Huffman coding: its length as an integer
// with a 7-bit prefix, then the bytes.
func appendText(b []byte, s string) []byte {
	n := len(s)
	if n < 127 {
		return append(append(b, byte(n)), s...)
	}
	b = append(b, 127)
	for n -= 127; n >= 128; n >>= 7 {
		b = append(b, byte(n)|128)
	}
	return append(append(b, byte(n)), s...)
}

// encodeMessage encodes a status message for a header: bytes that are not printable
// ASCII are percent-encoded, and invalid UTF-8 is replaced.
func encodeMessage(s string) string {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = isPlain(s[i])
	}
	if plain {
		return s
	}
	var out strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		for _, b := range []byte(string(r)) {
			if n == 1 && isPlain(b) {
				out.WriteByte(b)
			} else {
				fmt.Fprintf(&out, "%%%02X", b)
			}
		}
		s = s[n:]
	}
	return out.String()
}

func isPlain(b byte) bool { return ' ' <= b && b <= '~' && b != '%' }

// fieldLimits is what the client's settings say about headers. Guarded by conn.mu.
type fieldLimits struct {
	maxList int64 // limit of a header list; -1: none
	shrunk  bool  // the client changed its table size; the next block must start with a size update
}

// begin starts a header block. We never use the dynamic table of the client's
// decoder; but a client that reduced its size expects a size update in the next block.
func (f *fieldLimits) begin(l *fieldList) {
	if f.shrunk {
		f.shrunk = false
		l.block = append(l.block, emptyTable)
	}
}

// takes reports whether a header list is within the client's limit.
func (f *fieldLimits) takes(l *fieldList) bool { return f.maxList < 0 || l.size <= f.maxList }

// takesPlain reports whether the prepared header blocks may be sent.
func (f *fieldLimits) takesPlain() bool {
	return !f.shrunk && (f.maxList < 0 || f.maxList >= plainSize)
}
