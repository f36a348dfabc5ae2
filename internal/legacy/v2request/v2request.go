// Package v2request encodes and decodes log entries that are requests of the v2 API.
// Members of etcd up to 3.5 propose such entries, also about themselves.
//
// In: a request, or the bytes of an entry. Out: the bytes to propose, the request, and the
// equivalent v3 request. Always true: the encoding is that of etcd 3.5; members of every
// release decode the same from an entry, or skip it; foreign bytes are an error and never a
// panic.
package v2request

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// ErrWrite is the cause of failing to decode an entry that writes to the tree of the v2
// API: no v3 request is equivalent.
var ErrWrite = errors.New("command: the entry is a request to the tree of the v2 API")

// Sync is the method that removes expired nodes; members propose it themselves.
const Sync = "SYNC"

// MaxBytes bounds an entry. Forms of the API are up to 10 MiB long, and --max-request-bytes
// does not apply to them.
const MaxBytes = 11 << 20

// fieldRequest holds a v2 request in an InternalRaftRequest up to 3.6, and the method in a
// v2 request. Later versions do not use it.
const fieldRequest protowire.Number = 2

// Request is etcdserverpb.Request, the proto2 message of the v2 API. Members of etcd up to
// 3.5 also publish their names and the version of the cluster with it. Paths are those of
// the store: keys of clients are below /1.
type Request struct {
	ID         uint64 // 1
	Method     string // 2: PUT, POST, DELETE, SYNC, QGET; GET and HEAD never enter the log
	Path       string // 3
	Val        string // 4
	Dir        bool   // 5
	PrevValue  string // 6, empty: no condition
	PrevIndex  uint64 // 7, 0: no condition
	PrevExist  *bool  // 8
	Expiration int64  // 9, Unix ns, 0: none
	Wait       bool   // 10
	Since      uint64 // 11
	Recursive  bool   // 12
	Sorted     bool   // 13
	Quorum     bool   // 14
	Time       int64  // 15, Unix ns, the proposer's clock; etcd sets it for SYNC only
	Stream     bool   // 16
	Refresh    *bool  // 17
}

// Modern returns an entry of the same effect that members of 3.7, which have no v2
// requests, can decode: data itself, unless it is a v2 request. A request to the tree of
// the v2 API has no effect on members of 3.7; the entry carries it along for members of
// Quorate. Undecodable data is returned unchanged.
func Modern(data []byte) []byte {
	if !startsAsV2(data) {
		return data
	}
	r, ok, err := Parse(data)
	if !ok || err != nil {
		return data
	}
	req, err := r.today()
	if errors.Is(err, ErrWrite) || err == nil && r.Method == "SYNC" {
		return carry(r.ID, data)
	}
	if err != nil {
		return data
	}
	b, err := proto.Marshal(req)
	if err != nil {
		return data
	}
	return b
}

// Look reports whether an entry is a v2 request, whether that concerns the tree of the v2
// API, and whether a v3 entry carries it.
func Look(data []byte) (is, write, carries bool) {
	carries = carried(data) != nil
	if !carries && !startsAsV2(data) {
		return false, false, false
	}
	r, is, err := Parse(data)
	if !is || err != nil {
		return is, false, carries
	}
	_, err = r.today()
	return true, errors.Is(err, ErrWrite) || r.Method == "SYNC", carries
}

// startsAsV2 reports cheaply whether an entry may be a v2 request: nothing but an id
// precedes field 2.
func startsAsV2(data []byte) bool {
	if len(data) > 0 && data[0] == 1<<3 {
		_, n := protowire.ConsumeVarint(data[1:])
		if n < 0 {
			return false
		}
		data = data[1+n:]
	}
	return len(data) > 0 && data[0] == 2<<3|2
}

// Decode decodes an entry as a v2 request, bare or inside an InternalRaftRequest, and
// returns the equivalent v3 request. ok is false if the entry is not a v2 request.
func Decode(data []byte) (_ *pb.InternalRaftRequest, ok bool, err error) {
	r, ok, err := Parse(data)
	if !ok || err != nil {
		return nil, ok, err
	}
	req, err := r.today()
	return req, true, err
}

// Parse decodes an entry as a v2 request, bare or, as etcd up to 3.6 accepts it too, inside
// an InternalRaftRequest. ok is false if the entry is not a v2 request.
func Parse(data []byte) (r *Request, ok bool, err error) {
	held, ok := find(data)
	if !ok {
		return nil, false, nil
	}
	r = new(Request)
	if err := r.decode(held); err != nil {
		return nil, true, err
	}
	return r, true, nil
}

// find returns the v2 request in an entry.
func find(data []byte) (held []byte, ok bool) {
	if v := carried(data); v != nil {
		data = v
	}
	for b := data; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, false
		}
		if num == fieldRequest && typ == protowire.BytesType {
			v, m := protowire.ConsumeBytes(b[n:])
			if m < 0 {
				return nil, false
			}
			switch string(v) {
			case "GET", "QGET", "HEAD", "PUT", "POST", "DELETE", "SYNC":
				return data, true // no method is a valid message
			}
			return v, true
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return nil, false
		}
		b = b[n+m:]
	}
	return nil, false
}

// Marshal returns the bytes that etcd 3.5 encodes for r: every field that cannot be null is
// present.
func (r *Request) Marshal() []byte {
	b := make([]byte, 0, len(r.Method)+len(r.Path)+len(r.Val)+len(r.PrevValue)+96)
	b = appendNumber(b, 1, r.ID)
	b = appendText(b, 2, r.Method)
	b = appendText(b, 3, r.Path)
	b = appendText(b, 4, r.Val)
	b = appendNumber(b, 5, protowire.EncodeBool(r.Dir))
	b = appendText(b, 6, r.PrevValue)
	b = appendNumber(b, 7, r.PrevIndex)
	if r.PrevExist != nil {
		b = appendNumber(b, 8, protowire.EncodeBool(*r.PrevExist))
	}
	b = appendNumber(b, 9, uint64(r.Expiration))
	b = appendNumber(b, 10, protowire.EncodeBool(r.Wait))
	b = appendNumber(b, 11, r.Since)
	b = appendNumber(b, 12, protowire.EncodeBool(r.Recursive))
	b = appendNumber(b, 13, protowire.EncodeBool(r.Sorted))
	b = appendNumber(b, 14, protowire.EncodeBool(r.Quorum))
	b = appendNumber(b, 15, uint64(r.Time))
	b = appendNumber(b, 16, protowire.EncodeBool(r.Stream))
	if r.Refresh != nil {
		b = appendNumber(b, 17, protowire.EncodeBool(*r.Refresh))
	}
	return b
}

func appendNumber(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

func appendText(b []byte, num protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// decode decodes a bare request. Of a repeated field the last value counts; unknown fields
// and fields of another wire type are skipped.
func (r *Request) decode(b []byte) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("decode v2 request: %w", protowire.ParseError(n))
		}
		b = b[n:]
		m := protowire.ConsumeFieldValue(num, typ, b)
		if m < 0 {
			return fmt.Errorf("decode v2 request: field %d: %w", num, protowire.ParseError(m))
		}
		switch typ {
		case protowire.VarintType:
			v, _ := protowire.ConsumeVarint(b)
			r.setNumber(num, v)
		case protowire.BytesType:
			v, _ := protowire.ConsumeBytes(b)
			r.setText(num, v)
		}
		b = b[m:]
	}
	return nil
}

func (r *Request) setNumber(num protowire.Number, v uint64) {
	set := v != 0
	switch num {
	case 1:
		r.ID = v
	case 5:
		r.Dir = set
	case 7:
		r.PrevIndex = v
	case 8:
		r.PrevExist = &set
	case 9:
		r.Expiration = int64(v)
	case 10:
		r.Wait = set
	case 11:
		r.Since = v
	case 12:
		r.Recursive = set
	case 13:
		r.Sorted = set
	case 14:
		r.Quorum = set
	case 15:
		r.Time = int64(v)
	case 16:
		r.Stream = set
	case 17:
		r.Refresh = &set
	}
}

func (r *Request) setText(num protowire.Number, v []byte) {
	switch num {
	case 2:
		r.Method = string(v)
	case 3:
		r.Path = string(v)
	case 4:
		r.Val = string(v)
	case 6:
		r.PrevValue = string(v)
	}
}

// conditional reports whether r depends on the state of the key.
func (r *Request) conditional() bool {
	return r.PrevValue != "" || r.PrevIndex != 0 || r.PrevExist != nil
}

// today translates the two requests that members propose themselves. A read and a sweep of
// expired keys do not change the membership.
func (r *Request) today() (*pb.InternalRaftRequest, error) {
	req := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: r.ID}}
	switch {
	case r.Method == "QGET" || r.Method == "SYNC":
		req.DowngradeVersionTest = &pb.DowngradeVersionTestRequest{Ver: noEffectSince} // has no effect
		return req, nil
	case r.Method != "PUT" || r.conditional():
	case r.Path == "/0/version":
		req.ClusterVersionSet = &membershippb.ClusterVersionSetRequest{Ver: r.Val}
		return req, nil
	default:
		name, ok := strings.CutPrefix(r.Path, "/0/members/")
		if !ok {
			break
		}
		if name, ok = strings.CutSuffix(name, "/attributes"); !ok {
			break
		}
		id, err := strconv.ParseUint(name, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("decode v2 request for %q: %w", r.Path, err)
		}
		var attr struct {
			Name       string   `json:"name"`
			ClientURLs []string `json:"clientURLs"`
		}
		if err := json.Unmarshal([]byte(r.Val), &attr); err != nil {
			return nil, fmt.Errorf("decode v2 request for %q: %w", r.Path, err)
		}
		req.ClusterMemberAttrSet = &membershippb.ClusterMemberAttrSetRequest{Member_ID: id,
			MemberAttributes: &membershippb.Attributes{Name: attr.Name, ClientUrls: attr.ClientURLs}}
		return req, nil
	}
	return nil, fmt.Errorf("%w: %s %.200q", ErrWrite, r.Method, r.Path)
}

// MaxBytes returns the bound of an encoded request.
func (*Request) MaxBytes() int { return MaxBytes }

// Frees reports whether the request only removes data.
func (r *Request) Frees() bool { return r.Method == Sync }

// CarriedBy reports whether an entry of a later release carries proposed, the encoded request.
func (*Request) CarriedBy(entry, proposed []byte) bool { return bytes.Equal(proposed, Plain(entry)) }
