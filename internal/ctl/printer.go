package ctl

import (
	"fmt"
	"io"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// printer writes answers in one output format. An error of a method ends the command; most
// formats cannot express every answer.
type printer interface {
	put(*clientv3.PutResponse) error
	get(*clientv3.GetResponse) error
	del(*clientv3.DeleteResponse) error
	txn(*clientv3.TxnResponse) error
	watch(*clientv3.WatchResponse) error

	leaseGrant(*clientv3.LeaseGrantResponse) error
	leaseRevoke(clientv3.LeaseID, *clientv3.LeaseRevokeResponse) error
	leaseKeepAlive(*clientv3.LeaseKeepAliveResponse) error
	leaseTimeToLive(r *clientv3.LeaseTimeToLiveResponse, keys bool) error
	leaseList(*clientv3.LeaseLeasesResponse) error

	memberAdd(*clientv3.MemberAddResponse) error
	memberRemove(id uint64, r *clientv3.MemberRemoveResponse) error
	memberUpdate(id uint64, r *clientv3.MemberUpdateResponse) error
	memberPromote(id uint64, r *clientv3.MemberPromoteResponse) error
	memberList(*clientv3.MemberListResponse) error

	endpointHealth([]endpointHealth) error
	endpointStatus([]endpointStatus) error
	endpointHashKV([]endpointHashKV) error

	alarms(*clientv3.AlarmResponse) error
	moveLeader(from, to uint64, r *clientv3.MoveLeaderResponse) error
	downgrade(action string, r *clientv3.DowngradeResponse) error

	// done describes a change of users or roles, with the server's answer.
	done(text string, r any) error
	authStatus(*clientv3.AuthStatusResponse) error
	userGet(user string, r *clientv3.AuthUserGetResponse) error
	userList(*clientv3.AuthUserListResponse) error
	roleGet(role string, r *clientv3.AuthRoleGetResponse) error
	roleList(*clientv3.AuthRoleListResponse) error
}

type printerOptions struct {
	stdout io.Writer
	stderr io.Writer // where simple prints endpoints that are not healthy
	hex    bool
}

// newPrinter returns the printer of a format, or nil if there is no such format.
func newPrinter(format string, o printerOptions) printer {
	switch format {
	case "simple":
		return &simplePrinter{printerOptions: o}
	case "fields":
		return &fieldsPrinter{forward: forward{unsupported(format)}, printerOptions: o}
	case "json":
		return newJSONPrinter(o)
	case "protobuf":
		return newProtobufPrinter(o)
	case "table":
		return &tablePrinter{forward: forward{unsupported(format)}, w: o.stdout}
	}
	return nil
}

// unsupported is the function of a format that cannot express an answer.
func unsupported(format string) func(any) error {
	return func(any) error {
		return fail(exitBadFeature, fmt.Errorf("%s not supported as output format", format))
	}
}

// forward is a printer that passes every answer, as the client returned it, to one
// function. A format embeds it and overrides the methods that differ.
type forward struct {
	to func(any) error
}

func (f forward) put(r *clientv3.PutResponse) error     { return f.to(r) }
func (f forward) get(r *clientv3.GetResponse) error     { return f.to(r) }
func (f forward) del(r *clientv3.DeleteResponse) error  { return f.to(r) }
func (f forward) txn(r *clientv3.TxnResponse) error     { return f.to(r) }
func (f forward) watch(r *clientv3.WatchResponse) error { return f.to(r) }

func (f forward) leaseGrant(r *clientv3.LeaseGrantResponse) error { return f.to(r) }
func (f forward) leaseRevoke(_ clientv3.LeaseID, r *clientv3.LeaseRevokeResponse) error {
	return f.to(r)
}
func (f forward) leaseKeepAlive(r *clientv3.LeaseKeepAliveResponse) error { return f.to(r) }
func (f forward) leaseTimeToLive(r *clientv3.LeaseTimeToLiveResponse, _ bool) error {
	return f.to(r)
}
func (f forward) leaseList(r *clientv3.LeaseLeasesResponse) error { return f.to(r) }

func (f forward) memberAdd(r *clientv3.MemberAddResponse) error                 { return f.to(r) }
func (f forward) memberRemove(_ uint64, r *clientv3.MemberRemoveResponse) error { return f.to(r) }
func (f forward) memberUpdate(_ uint64, r *clientv3.MemberUpdateResponse) error { return f.to(r) }
func (f forward) memberPromote(_ uint64, r *clientv3.MemberPromoteResponse) error {
	return f.to(r)
}
func (f forward) memberList(r *clientv3.MemberListResponse) error { return f.to(r) }

func (f forward) endpointHealth(l []endpointHealth) error { return f.to(l) }
func (f forward) endpointStatus(l []endpointStatus) error { return f.to(l) }
func (f forward) endpointHashKV(l []endpointHashKV) error { return f.to(l) }

func (f forward) alarms(r *clientv3.AlarmResponse) error { return f.to(r) }
func (f forward) moveLeader(_, _ uint64, r *clientv3.MoveLeaderResponse) error {
	return f.to(r)
}
func (f forward) downgrade(_ string, r *clientv3.DowngradeResponse) error { return f.to(r) }
