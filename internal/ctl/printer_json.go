package ctl

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// jsonPrinter writes one line of JSON for each answer: the Go structs of the API as
// encoding/json encodes them, so numbers stay numbers and bytes become base64.
type jsonPrinter struct {
	forward
	w   io.Writer
	hex bool // print member IDs in hexadecimal
}

func newJSONPrinter(o printerOptions) *jsonPrinter {
	p := &jsonPrinter{w: o.stdout, hex: o.hex}
	p.forward.to = p.write
	return p
}

func (p *jsonPrinter) write(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	_, err = fmt.Fprintf(p.w, "%s\n", b)
	return err
}

// The wrapper of a response inside a transaction has had the name of a Go field since etcd
// 3.0; its fields have their protobuf names.
type (
	jsonTxn struct {
		Header    *pb.ResponseHeader `json:"header,omitempty"`
		Succeeded bool               `json:"succeeded,omitempty"`
		Responses []jsonResponseOp   `json:"responses,omitempty"`
	}
	jsonResponseOp struct {
		Response jsonOneResponse `json:"Response"`
	}
	jsonOneResponse struct {
		Range       *pb.RangeResponse       `json:"response_range,omitempty"`
		Put         *pb.PutResponse         `json:"response_put,omitempty"`
		DeleteRange *pb.DeleteRangeResponse `json:"response_delete_range,omitempty"`
		Txn         *jsonTxn                `json:"response_txn,omitempty"`
	}
)

func (p *jsonPrinter) txn(r *clientv3.TxnResponse) error {
	return p.write(newJSONTxn((*pb.TxnResponse)(r)))
}

func newJSONTxn(r *pb.TxnResponse) *jsonTxn {
	t := &jsonTxn{Header: r.GetHeader(), Succeeded: r.GetSucceeded()}
	for _, op := range r.GetResponses() {
		one := jsonOneResponse{
			Range:       op.GetResponseRange(),
			Put:         op.GetResponsePut(),
			DeleteRange: op.GetResponseDeleteRange(),
		}
		if nested := op.GetResponseTxn(); nested != nil {
			one.Txn = newJSONTxn(nested)
		}
		t.Responses = append(t.Responses, jsonResponseOp{one})
	}
	return t
}

// The member's answer with --hex.
type (
	hexMembers struct {
		Header  hexHeader   `json:"header"`
		Members []hexMember `json:"members"`
	}
	hexMemberAdded struct {
		Header  hexHeader   `json:"header"`
		Member  hexMember   `json:"member"`
		Members []hexMember `json:"members"`
	}
	hexHeader struct {
		ClusterID string `json:"cluster_id"`
		MemberID  string `json:"member_id"`
		Revision  int64  `json:"revision,omitempty"`
		RaftTerm  uint64 `json:"raft_term,omitempty"`
	}
	hexMember struct {
		ID         string   `json:"ID"`
		Name       string   `json:"name,omitempty"`
		PeerURLs   []string `json:"peerURLs,omitempty"`
		ClientURLs []string `json:"clientURLs,omitempty"`
		IsLearner  bool     `json:"isLearner,omitempty"`
	}
)

func newHexHeader(h *pb.ResponseHeader) hexHeader {
	return hexHeader{
		ClusterID: strconv.FormatUint(h.GetClusterId(), 16),
		MemberID:  strconv.FormatUint(h.GetMemberId(), 16),
		Revision:  h.GetRevision(),
		RaftTerm:  h.GetRaftTerm(),
	}
}

func newHexMember(m *pb.Member) hexMember {
	return hexMember{
		ID:         strconv.FormatUint(m.GetID(), 16),
		Name:       m.GetName(),
		PeerURLs:   m.GetPeerURLs(),
		ClientURLs: m.GetClientURLs(),
		IsLearner:  m.GetIsLearner(),
	}
}

func newHexMembers(members []*pb.Member) []hexMember {
	hex := make([]hexMember, 0, len(members))
	for _, m := range members {
		hex = append(hex, newHexMember(m))
	}
	return hex
}

// writeMembers writes r or, with --hex, its parts in hexadecimal.
func (p *jsonPrinter) writeMembers(r any, h *pb.ResponseHeader, members []*pb.Member) error {
	if !p.hex {
		return p.write(r)
	}
	return p.write(hexMembers{Header: newHexHeader(h), Members: newHexMembers(members)})
}

func (p *jsonPrinter) memberAdd(r *clientv3.MemberAddResponse) error {
	if !p.hex {
		return p.write(r)
	}
	return p.write(hexMemberAdded{
		Header:  newHexHeader(r.Header),
		Member:  newHexMember(r.Member),
		Members: newHexMembers(r.Members),
	})
}

func (p *jsonPrinter) memberRemove(_ uint64, r *clientv3.MemberRemoveResponse) error {
	return p.writeMembers(r, r.Header, r.Members)
}

func (p *jsonPrinter) memberUpdate(_ uint64, r *clientv3.MemberUpdateResponse) error {
	return p.writeMembers(r, r.Header, r.Members)
}

func (p *jsonPrinter) memberPromote(_ uint64, r *clientv3.MemberPromoteResponse) error {
	return p.writeMembers(r, r.Header, r.Members)
}

func (p *jsonPrinter) memberList(r *clientv3.MemberListResponse) error {
	return p.writeMembers(r, r.Header, r.Members)
}
