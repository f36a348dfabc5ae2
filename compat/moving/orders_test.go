package moving

import (
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// added adds a member to the cluster of via and starts it in dir.
func added(t testing.TB, via *harness.Member, name, binary, dir string) *harness.Member {
	t.Helper()
	addrs, err := harness.FreeAddrs(2)
	must(t, err)
	c := child.Dial(t, via.ClientAddr())
	var r *pb.MemberAddResponse
	child.Eventually(t, limit, "add "+name, func() (err error) {
		r, err = c.Cluster.MemberAdd(withLimit(t), &pb.MemberAddRequest{PeerURLs: []string{"http://" + addrs[1]}})
		return err
	})
	var initial []string
	for _, x := range r.Members {
		n := x.Name
		if x.ID == r.Member.ID {
			n = name
		}
		for _, u := range x.PeerURLs {
			initial = append(initial, n+"="+u)
		}
	}
	m, err := harness.Start(harness.Config{Binary: binary, Dir: dir, Name: name, ClientAddr: addrs[0], PeerAddr: addrs[1],
		InitialCluster: strings.Join(initial, ","), ClusterState: "existing"})
	must(t, err)
	t.Cleanup(func() { m.Kill() })
	must(t, m.WaitReady(withLimit(t)))
	return m
}
