package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/encoding/protowire"
)

// ErrV2Write is the cause of decoding an entry that writes to the v2 store. Members of etcd 3.6
// end at such an entry as well; skipping it would lose the write without a word.
var ErrV2Write = errors.New("command: the entry is a write of a client to the v2 store, which this version does not keep: " +
	"move the data to the v3 API and start every member of etcd 3.5 with --enable-v2=false")

// fieldV2 holds, in an InternalRaftRequest up to 3.6, a v2 request, and in a v2 request the
// method. Later versions do not use it.
const fieldV2 protowire.Number = 2

// v2Request is what counts of an etcdserverpb.Request, the proto2 message of the v2 API in which
// members of etcd 3.5 and before also tell their names and the version of the cluster.
type v2Request struct {
	id                uint64 // 1
	method, path, val string // 2, 3, 4
	conditional       bool   // has prevValue 6, prevIndex 7 or prevExist 8
}

// Modern returns an entry of the same effect that members of 3.7 can read, which know no v2
// requests: data itself, unless it is one. What cannot be translated stays as it is.
func Modern(data []byte) []byte {
	if !startsAsV2(data) {
		return data
	}
	req, ok, err := decodeV2(data)
	if !ok || err != nil {
		return data
	}
	b, err := EncodeRequest(req)
	if err != nil {
		return data
	}
	return b
}

// V2 tells whether an entry is a v2 request, and whether it writes to the v2 store for a client,
// which no entry of today does.
func V2(data []byte) (is, write bool) {
	if !startsAsV2(data) {
		return false, false
	}
	_, is, err := decodeV2(data)
	return is, is && errors.Is(err, ErrV2Write)
}

// startsAsV2 reports, at the price of a glance, whether an entry may be a v2 request: nothing but
// an id stands before field 2.
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

// decodeV2 parses an entry as a v2 request, bare or inside an InternalRaftRequest, and returns the
// request of today that does the same. ok is false if the entry is none.
func decodeV2(data []byte) (_ *pb.InternalRaftRequest, ok bool, err error) {
	var held []byte
	found := false
	for b := data; len(b) > 0; {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil, false, nil
		}
		if num == fieldV2 && typ == protowire.BytesType {
			v, m := protowire.ConsumeBytes(b[n:])
			if m < 0 {
				return nil, false, nil
			}
			held, found = v, true
			break
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return nil, false, nil
		}
		b = b[n+m:]
	}
	if !found {
		return nil, false, nil
	}
	switch string(held) {
	case "GET", "QGET", "HEAD", "PUT", "POST", "DELETE", "SYNC":
		held = data // no method is a valid message
	}
	var r v2Request
	if err := r.decode(held); err != nil {
		return nil, true, err
	}
	req, err := r.today()
	return req, true, err
}

func (r *v2Request) decode(b []byte) error {
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
			switch num {
			case 1:
				r.id = v
			case 7:
				r.conditional = r.conditional || v != 0
			case 8:
				r.conditional = true
			}
		case protowire.BytesType:
			v, _ := protowire.ConsumeBytes(b)
			switch num {
			case 2:
				r.method = string(v)
			case 3:
				r.path = string(v)
			case 4:
				r.val = string(v)
			case 6:
				r.conditional = r.conditional || len(v) > 0
			}
		}
		b = b[m:]
	}
	return nil
}

// today translates the two requests that members make themselves. A read and a sweep of expired
// keys change nothing that is kept here.
func (r *v2Request) today() (*pb.InternalRaftRequest, error) {
	req := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: r.id}}
	switch {
	case r.method == "QGET" || r.method == "SYNC":
		req.DowngradeVersionTest = &pb.DowngradeVersionTestRequest{} // has no effect on anybody
		return req, nil
	case r.method != "PUT" || r.conditional:
	case r.path == "/0/version":
		req.ClusterVersionSet = &membershippb.ClusterVersionSetRequest{Ver: r.val}
		return req, nil
	default:
		name, ok := strings.CutPrefix(r.path, "/0/members/")
		if !ok {
			break
		}
		if name, ok = strings.CutSuffix(name, "/attributes"); !ok {
			break
		}
		id, err := strconv.ParseUint(name, 16, 64)
		if err != nil {
			return nil, fmt.Errorf("decode v2 request for %q: %w", r.path, err)
		}
		var attr struct {
			Name       string   `json:"name"`
			ClientURLs []string `json:"clientURLs"`
		}
		if err := json.Unmarshal([]byte(r.val), &attr); err != nil {
			return nil, fmt.Errorf("decode v2 request for %q: %w", r.path, err)
		}
		req.ClusterMemberAttrSet = &membershippb.ClusterMemberAttrSetRequest{Member_ID: id,
			MemberAttributes: &membershippb.Attributes{Name: attr.Name, ClientUrls: attr.ClientURLs}}
		return req, nil
	}
	return nil, fmt.Errorf("%w: %s %.200q", ErrV2Write, r.method, r.path)
}
