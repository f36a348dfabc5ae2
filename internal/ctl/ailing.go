package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/internal/diagnose"
)

// refusedChange is rpcError for a change of the membership. If the change was rejected to
// protect the quorum, further lines name the missing members, which the error does not.
func (s *session) refusedChange(c *clientv3.Client, err error) error {
	if !errors.Is(err, rpctypes.ErrUnhealthy) && !strings.Contains(err.Error(), rpctypes.ErrMemberNotEnoughStarted.Error()) {
		return s.rpcError(exitError, err)
	}
	return &exitErr{code: exitError, err: err, notes: s.ailing(c)}
}

// ailing returns, in one line each, the voters that were never started or do not answer.
func (s *session) ailing(c *clientv3.Client) []string {
	cfg, err := s.config()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*diagnose.Timeout)
	defer cancel()
	r, err := c.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil
	}
	notes := make([]string, len(r.Members))
	var wg sync.WaitGroup
	for i, m := range r.Members {
		if m.IsLearner {
			continue
		}
		wg.Go(func() {
			if m.Name == "" {
				notes[i] = fmt.Sprintf("member %x at %s was added and has not been started: start it, or take it back with \"etcdctl member remove %x\"",
					m.ID, strings.Join(m.PeerURLs, ","), m.ID)
			} else {
				notes[i] = s.ails(ctx, (*pb.Member)(m), cfg)
			}
		})
	}
	wg.Wait()
	var said []string
	for _, n := range notes {
		if n != "" {
			said = append(said, n)
		}
	}
	if len(said) == 0 {
		said = []string{"all members answer now; a member counts after 5 seconds without a break: try again"}
	}
	return said
}

// ails returns what is wrong with a started member, empty if one of its URLs answers.
func (s *session) ails(ctx context.Context, m *pb.Member, cfg *clientv3.Config) string {
	why := "it has no client URLs"
	for _, ep := range m.ClientURLs {
		ails := s.diagnosis(cfg).Ails(ctx, ep)
		if ails == "" {
			return ""
		}
		why = ep + " " + ails
	}
	return fmt.Sprintf("member %x (%s) does not answer: %s", m.ID, m.Name, why)
}
