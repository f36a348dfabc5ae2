package ctl

import (
	"bytes"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func TestAiling(t *testing.T) {
	s := newStage(t)
	up := &pb.Member{ID: 1, Name: "up", ClientURLs: []string{"http://" + downAddr, "http://" + s.leader.addr}}
	down := &pb.Member{ID: 2, Name: "down", ClientURLs: []string{"http://" + downAddr}}
	unstarted := &pb.Member{ID: 0xabc, PeerURLs: []string{"http://10.0.0.4:2380"}}
	learner := &pb.Member{ID: 4, IsLearner: true}
	for _, c := range []struct {
		members []*pb.Member
		want    string
	}{
		{[]*pb.Member{up, down, unstarted, learner},
			"member 2 (down) does not answer: http://127.0.0.1:1 dial tcp 127.0.0.1:1: connect: connection refused (nothing listens there: is etcd running, and are --endpoints and its --listen-client-urls the same?)\n" +
				"member abc at http://10.0.0.4:2380 was added and has not been started: start it, or take it back with \"etcdctl member remove abc\"\n"},
		{[]*pb.Member{up}, "all members answer now; a member counts after 5 seconds without a break: try again\n"},
	} {
		s.leader.members = c.members
		var stdout, stderr bytes.Buffer
		code := Run(Process{Args: []string{"member", "remove", "5678", "--endpoints", s.leader.addr}, Stdin: strings.NewReader(""), Stdout: &stdout, Stderr: &stderr})
		if want := "Error: etcdserver: unhealthy cluster\n" + c.want; code != exitError || !strings.HasSuffix(stderr.String(), want) {
			t.Errorf("ended with %d\ngot  %s\nwant %s", code, stderr.String(), want)
		}
	}
}
