package ctl

import (
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// protobufPrinter writes the encoded message of the API, with nothing after it.
type protobufPrinter struct {
	forward
	w io.Writer
}

func newProtobufPrinter(o printerOptions) *protobufPrinter {
	p := &protobufPrinter{w: o.stdout}
	p.forward.to = p.write
	return p
}

func (p *protobufPrinter) write(r any) error {
	m, ok := apiMessage(r).(proto.Message)
	if !ok {
		return fail(exitBadFeature, fmt.Errorf("marshal unsupported for type %T (%v)", r, r))
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	_, err = p.w.Write(b)
	return err
}

// watch leaves the cancel reason out, as etcdctl does.
func (p *protobufPrinter) watch(r *clientv3.WatchResponse) error {
	return p.write(&pb.WatchResponse{
		Header:          r.Header,
		Events:          r.Events,
		CompactRevision: r.CompactRevision,
		Canceled:        r.Canceled,
		Created:         r.Created,
	})
}

func (p *protobufPrinter) endpointHealth([]endpointHealth) error { return unsupported("protobuf")(nil) }
func (p *protobufPrinter) endpointStatus([]endpointStatus) error { return unsupported("protobuf")(nil) }
func (p *protobufPrinter) endpointHashKV([]endpointHashKV) error { return unsupported("protobuf")(nil) }

// apiMessage returns the API's message behind a client response. The lease responses are
// types of the client: etcdctl writes only their header.
func apiMessage(r any) any {
	switch r := r.(type) {
	case *clientv3.PutResponse:
		return (*pb.PutResponse)(r)
	case *clientv3.GetResponse:
		return (*pb.RangeResponse)(r)
	case *clientv3.DeleteResponse:
		return (*pb.DeleteRangeResponse)(r)
	case *clientv3.TxnResponse:
		return (*pb.TxnResponse)(r)
	case *clientv3.LeaseGrantResponse:
		return r.ResponseHeader
	case *clientv3.LeaseKeepAliveResponse:
		return r.ResponseHeader
	case *clientv3.LeaseTimeToLiveResponse:
		return r.ResponseHeader
	case *clientv3.LeaseLeasesResponse:
		return r.ResponseHeader
	case *clientv3.LeaseRevokeResponse:
		return (*pb.LeaseRevokeResponse)(r)
	case *clientv3.MemberAddResponse:
		return (*pb.MemberAddResponse)(r)
	case *clientv3.MemberRemoveResponse:
		return (*pb.MemberRemoveResponse)(r)
	case *clientv3.MemberUpdateResponse:
		return (*pb.MemberUpdateResponse)(r)
	case *clientv3.MemberPromoteResponse:
		return (*pb.MemberPromoteResponse)(r)
	case *clientv3.MemberListResponse:
		return (*pb.MemberListResponse)(r)
	case *clientv3.AlarmResponse:
		return (*pb.AlarmResponse)(r)
	case *clientv3.MoveLeaderResponse:
		return (*pb.MoveLeaderResponse)(r)
	case *clientv3.DowngradeResponse:
		return (*pb.DowngradeResponse)(r)
	}
	return apiAuthMessage(r)
}
