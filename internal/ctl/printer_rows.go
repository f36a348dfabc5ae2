package ctl

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Lists that table prints as rows and simple as comma-separated lines.

var (
	memberColumns         = []string{"ID", "Status", "Name", "Peer Addrs", "Client Addrs", "Is Learner"}
	endpointHealthColumns = []string{"endpoint", "health", "took", "error"}
	endpointHashKVColumns = []string{"endpoint", "hash", "hash_revision"}
	endpointStatusColumns = []string{
		"endpoint", "ID", "version", "storage version", "db size", "in use", "percentage not in use", "quota",
		"is leader", "is learner", "raft term", "raft index", "raft applied index", "errors",
		"downgrade target version", "downgrade enabled",
	}
)

func memberRows(r *clientv3.MemberListResponse) [][]string {
	var rows [][]string
	for _, m := range (*pb.MemberListResponse)(r).GetMembers() {
		status := "started"
		if m.GetName() == "" {
			// A member publishes its name when it starts for the first time.
			status = "unstarted"
		}
		rows = append(rows, []string{
			strconv.FormatUint(m.GetID(), 16),
			status,
			m.GetName(),
			strings.Join(m.GetPeerURLs(), ","),
			strings.Join(m.GetClientURLs(), ","),
			strconv.FormatBool(m.GetIsLearner()),
		})
	}
	return rows
}

func endpointHealthRows(l []endpointHealth) [][]string {
	var rows [][]string
	for _, h := range l {
		rows = append(rows, []string{h.Endpoint, strconv.FormatBool(h.Health), h.Took, h.Error})
	}
	return rows
}

func endpointStatusRows(l []endpointStatus) [][]string {
	var rows [][]string
	for _, s := range l {
		r := (*pb.StatusResponse)(s.Status)
		member := r.GetHeader().GetMemberId()
		rows = append(rows, []string{
			s.Endpoint,
			strconv.FormatUint(member, 16),
			r.GetVersion(),
			r.GetStorageVersion(),
			humanize.Bytes(uint64(r.GetDbSize())),
			humanize.Bytes(uint64(r.GetDbSizeInUse())),
			fmt.Sprintf("%d%%", percentUnused(r.GetDbSizeInUse(), r.GetDbSize())),
			humanize.Bytes(uint64(r.GetDbSizeQuota())),
			strconv.FormatBool(r.GetLeader() == member),
			strconv.FormatBool(r.GetIsLearner()),
			strconv.FormatUint(r.GetRaftTerm(), 10),
			strconv.FormatUint(r.GetRaftIndex(), 10),
			strconv.FormatUint(r.GetRaftAppliedIndex(), 10),
			strings.Join(r.GetErrors(), ", "),
			r.GetDowngradeInfo().GetTargetVersion(),
			strconv.FormatBool(r.GetDowngradeInfo().GetEnabled()),
		})
	}
	return rows
}

// percentUnused returns the share of the database file that holds no data, in whole
// percent. The share in use is rounded down.
func percentUnused(inUse, size int64) int64 {
	if size == 0 {
		return 0
	}
	return 100 - inUse*100/size
}

func endpointHashKVRows(l []endpointHashKV) [][]string {
	var rows [][]string
	for _, h := range l {
		r := (*pb.HashKVResponse)(h.HashKV)
		rows = append(rows, []string{h.Endpoint, fmt.Sprint(r.GetHash()), fmt.Sprint(r.GetHashRevision())})
	}
	return rows
}
