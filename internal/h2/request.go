package h2

import (
	"encoding/base64"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// request is the parsed header list of a call.
type request struct {
	path       string
	subtype    string // the content type after "application/grpc+"
	encoding   string // grpc-encoding of the client's messages
	md         metadata.MD
	timeout    time.Duration
	hasTimeout bool
}

// refusal says why a call is rejected. Without a status the stream is reset with code;
// with one, the client gets it in a response with the HTTP status http.
type refusal struct {
	code   errCode
	status *status.Status
	http   int
}

// usualFields is more than the number of header fields of a call of etcd's client.
const usualFields = 16

// fieldLists holds memory for the fields of a block: an idle connection has none.
var fieldLists = sync.Pool{New: func() any { return new([usualFields]hpack.HeaderField) }}

// headerBlock collects the fields of one header block.
type headerBlock struct {
	dec       *hpack.Decoder
	fields    []hpack.HeaderField
	limit     int // limit of the header list size, as HTTP/2 counts it
	left      int
	truncated bool   // the limit was exceeded
	malformed string // why the block violates HTTP/2; "" if it does not
	regular   bool   // a regular field has been seen
	encoded   int    // encoded bytes so far, including frame headers
	fragments int
}

func newHeaderBlock(limit int) *headerBlock {
	h := &headerBlock{limit: limit}
	h.dec = hpack.NewDecoder(4096, h.add)
	h.dec.SetMaxStringLength(limit)
	return h
}

func (h *headerBlock) begin() {
	h.fields = fieldLists.Get().(*[usualFields]hpack.HeaderField)[:0]
	h.left, h.truncated, h.malformed, h.regular, h.encoded, h.fragments = h.limit, false, "", false, 0, 0
	h.dec.SetEmitEnabled(true)
}

func (h *headerBlock) add(f hpack.HeaderField) {
	switch pseudo := strings.HasPrefix(f.Name, ":"); {
	case !httpguts.ValidHeaderFieldValue(f.Value):
		h.malformed = "invalid header field value"
	case pseudo && h.regular:
		h.malformed = "pseudo header field after regular"
	case !pseudo && !validName(f.Name):
		h.malformed = "invalid header field name"
	case !pseudo:
		h.regular = true
	}
	if h.left -= int(f.Size()); h.left < 0 {
		h.truncated = true
	}
	if h.truncated || h.malformed != "" {
		h.dec.SetEmitEnabled(false)
		return
	}
	h.fields = append(h.fields, f)
}

// release ends the use of the fields.
func (h *headerBlock) release() {
	clear(h.fields)
	if cap(h.fields) == usualFields {
		fieldLists.Put((*[usualFields]hpack.HeaderField)(h.fields[:usualFields]))
	}
	h.fields = nil
}

// validName reports whether a field name is valid in HTTP/2: a token without upper case.
func validName(name string) bool {
	if name == "" {
		return false
	}
	for _, r := range name {
		if !httpguts.IsTokenRune(r) || 'A' <= r && r <= 'Z' {
			return false
		}
	}
	return true
}

// fragment decodes a fragment of the block. The encoded size of the whole block is
// limited, so that a client cannot continue it forever.
func (h *headerBlock) fragment(b []byte) error {
	h.encoded += len(b) + frameHeadLen
	h.fragments++
	if h.encoded > 2*h.limit || h.fragments > 1 && (h.truncated || h.malformed != "") {
		return &connError{codeProtocol, "header list too large"}
	}
	if _, err := h.dec.Write(b); err != nil {
		return &connError{codeCompression, err.Error()}
	}
	return nil
}

// end completes the block. An error ends the connection.
func (h *headerBlock) end() error {
	if err := h.dec.Close(); err != nil {
		return &connError{codeCompression, err.Error()}
	}
	if h.malformed == "" && !h.truncated {
		h.malformed = checkPseudo(h.fields)
	}
	return nil
}

// checkPseudo validates the pseudo headers, which come first: each at most once, and only
// those of requests. It returns "" if they are valid.
func checkPseudo(fields []hpack.HeaderField) string {
	for i, f := range fields {
		switch f.Name {
		case ":method", ":path", ":scheme", ":authority", ":protocol":
		default:
			if strings.HasPrefix(f.Name, ":") {
				return "invalid pseudo header"
			}
			return ""
		}
		for _, earlier := range fields[:i] {
			if earlier.Name == f.Name {
				return "duplicate pseudo header"
			}
		}
	}
	return ""
}

const baseContentType = "application/grpc"

func contentSubtype(v string) (subtype string, ok bool) {
	rest, ok := strings.CutPrefix(v, baseContentType)
	switch {
	case !ok:
		return "", false
	case rest == "":
		return "", true
	case rest[0] == '+' || rest[0] == ';':
		return rest[1:], true
	}
	return "", false
}

// reserved reports whether a header belongs to gRPC or HTTP/2 rather than to the
// metadata of the call.
func reserved(name string) bool {
	switch name {
	case "content-type", "user-agent", "grpc-message-type", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "te":
		return true
	}
	return strings.HasPrefix(name, ":")
}

// parseRequest parses the headers of a call. A rejected call may still have a subtype,
// which the response needs.
func parseRequest(fields []hpack.HeaderField) (request, *refusal) {
	r := request{md: make(metadata.MD)} // of a size that suffices for the usual fields
	var method, contentType string
	var isGRPC, connection bool
	var malformed *status.Status
	for _, f := range fields {
		switch f.Name {
		case "content-type":
			subtype, ok := contentSubtype(f.Value)
			if !ok {
				contentType = f.Value
				continue
			}
			r.subtype, isGRPC = subtype, true
			r.md[f.Name] = append(r.md[f.Name], f.Value)
		case "grpc-encoding":
			r.encoding = f.Value
		case ":method":
			method = f.Value
		case ":path":
			r.path = f.Value
		case "grpc-timeout":
			r.hasTimeout = true
			var err error
			if r.timeout, err = parseTimeout(f.Value); err != nil {
				malformed = malformedTimeout(err)
			}
		case "connection": // an HTTP/1 header
			connection = true
		default:
			if reserved(f.Name) && f.Name != ":authority" && f.Name != "user-agent" {
				continue
			}
			v, err := decodeMetadata(f.Name, f.Value)
			if err != nil {
				malformed = status.Newf(codes.Internal, "malformed binary metadata %q in header %q: %v", f.Value, f.Name, err)
				continue
			}
			r.md[f.Name] = append(r.md[f.Name], v)
		}
	}
	return r, r.judge(method, contentType, isGRPC, connection, malformed)
}

// judge decides whether the call is accepted, in the order of grpc-go's checks.
func (r *request) judge(method, contentType string, isGRPC, connection bool, malformed *status.Status) *refusal {
	authorities, hosts := r.md[":authority"], r.md["host"]
	switch {
	case len(authorities) > 1 || len(hosts) > 1:
		return &refusal{status: status.Newf(codes.Internal, "num values of :authority: %v, num values of host: %v, both must only have 1 value as per HTTP/2 spec",
			len(authorities), len(hosts)), http: http.StatusBadRequest}
	case connection:
		return &refusal{code: codeProtocol}
	case !isGRPC:
		return &refusal{status: status.Newf(codes.InvalidArgument, "invalid gRPC request content-type %q", contentType), http: http.StatusUnsupportedMediaType}
	case malformed != nil:
		return &refusal{status: malformed, http: http.StatusBadRequest}
	}
	delete(r.md, "host")
	if len(authorities) == 0 && len(hosts) == 0 {
		return &refusal{status: status.New(codes.Internal, "no host or :authority header present"), http: http.StatusBadRequest}
	}
	if len(authorities) == 0 {
		r.md[":authority"] = hosts
	}
	if method != http.MethodPost {
		return &refusal{status: status.Newf(codes.Internal, "Received a HEADERS frame with :method %q which should be POST", method), http: http.StatusMethodNotAllowed}
	}
	return r.late()
}

// late refuses a call that has no time left.
func (r *request) late() *refusal {
	if r.hasTimeout && r.timeout <= 0 {
		return &refusal{status: status.New(codes.DeadlineExceeded, "context deadline exceeded"), http: http.StatusOK}
	}
	return nil
}

func malformedTimeout(err error) *status.Status {
	return status.Newf(codes.Internal, "malformed grpc-timeout: %v", err)
}

// parseTimeout parses a grpc-timeout: up to eight digits and a unit.
func parseTimeout(s string) (time.Duration, error) {
	switch {
	case len(s) < 2:
		return 0, fmt.Errorf("transport: timeout string is too short: %q", s)
	case len(s) > 9:
		return 0, fmt.Errorf("transport: timeout string is too long: %q", s)
	}
	unit, ok := timeoutUnits[s[len(s)-1]]
	if !ok {
		return 0, fmt.Errorf("transport: timeout unit is not recognized: %q", s)
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 64)
	if err != nil {
		return 0, err
	}
	if n > uint64(math.MaxInt64/unit) {
		return math.MaxInt64, nil
	}
	return time.Duration(n) * unit, nil
}

var timeoutUnits = map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second,
	'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}

const binarySuffix = "-bin"

func decodeMetadata(name, v string) (string, error) {
	if !strings.HasSuffix(name, binarySuffix) {
		return v, nil
	}
	enc := base64.RawStdEncoding
	if len(v)%4 == 0 { // padded, or of a length that needs no padding
		enc = base64.StdEncoding
	}
	b, err := enc.DecodeString(v)
	return string(b), err
}

func encodeMetadata(name, v string) string {
	if strings.HasSuffix(name, binarySuffix) {
		return base64.RawStdEncoding.EncodeToString([]byte(v))
	}
	return v
}

// parsed is a request that was accepted and the fields it was parsed from. Never modified.
type parsed struct {
	fields []hpack.HeaderField
	request
}

// sharedFields is the size of a header list, as HTTP/2 counts it, up to which connections
// share what was parsed from it.
const sharedFields = 4 << 10

// requests caches the parsed headers of the previous call of a connection: the calls of
// a client mostly have the same metadata. Those of another connection's client are often the same
// too: common, which is the last that any connection has parsed, saves both time and memory.
type requests struct {
	last   *parsed
	common *atomic.Pointer[parsed]
}

// parse is parseRequest with that cache. Metadata shared by several calls is never modified.
func (c *requests) parse(h *headerBlock) (request, *refusal) {
	for _, p := range [...]*parsed{c.last, c.common.Load()} {
		if p != nil && sameButFor(p.fields, h.fields) {
			c.last = p
			r := p.request
			return r, p.vary(&r, h.fields)
		}
	}
	r, refused := parseRequest(h.fields)
	if refused == nil {
		c.last = &parsed{slices.Clone(h.fields), r}
		if h.limit-h.left <= sharedFields {
			c.common.Store(c.last)
		}
	}
	return r, refused
}

// sameButFor compares fields, except for the values of :path and grpc-timeout, which vary
// from call to call and are not metadata.
func sameButFor(a, b []hpack.HeaderField) bool {
	return len(a) > 0 && slices.EqualFunc(a, b, func(x, y hpack.HeaderField) bool {
		return x.Name == y.Name && (x.Value == y.Value || x.Name == ":path" || x.Name == "grpc-timeout")
	})
}

// vary sets what differs from call to call. Of several timeouts the last counts, and a malformed
// one refuses the call, as in parseRequest.
func (*parsed) vary(r *request, fields []hpack.HeaderField) *refusal {
	var malformed *status.Status
	for _, f := range fields {
		switch f.Name {
		case ":path":
			r.path = f.Value
		case "grpc-timeout":
			var err error
			if r.timeout, err = parseTimeout(f.Value); err != nil {
				malformed = malformedTimeout(err)
			}
		}
	}
	if malformed != nil {
		return &refusal{status: malformed, http: http.StatusBadRequest}
	}
	return r.late()
}
