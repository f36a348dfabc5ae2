package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"quorate/internal/clock"

	"github.com/spf13/cobra"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Answers about one endpoint. The JSON names are part of the output.
type (
	endpointHealth struct {
		Endpoint string `json:"endpoint"`
		Health   bool   `json:"health"`
		Took     string `json:"took"` // a time.Duration as text; empty without a connection
		Error    string `json:"error,omitempty"`
	}
	endpointStatus struct {
		Endpoint string                   `json:"Endpoint"`
		Status   *clientv3.StatusResponse `json:"Status"`
	}
	endpointHashKV struct {
		Endpoint string                   `json:"Endpoint"`
		HashKV   *clientv3.HashKVResponse `json:"HashKV"`
	}
)

func (a endpointCommands) endpoint() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "endpoint <subcommand>",
		Short:   "Asks each endpoint for its health, its status or its hash",
		Example: examples("etcdctl endpoint status --cluster -w table"),
	}
	cluster := clusterFlag(cmd)
	cmd.AddCommand(a.health(cluster), a.status(cluster), a.hashKV(cluster))
	return cmd
}

func clusterFlag(cmd *cobra.Command) *bool {
	return cmd.PersistentFlags().Bool("cluster", false, "ask every member of the cluster, not only --endpoints")
}

// targets returns the endpoints to ask: the session's or, with --cluster, the client URLs
// that the members publish.
func (s *session) targets(cluster bool) ([]string, error) {
	if !cluster {
		return s.spec.Endpoints, nil
	}
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ctx, cancel := s.timeout()
	defer cancel()
	r, err := c.MemberList(ctx)
	if err != nil {
		return nil, s.rpcError(exitError, fmt.Errorf("failed to fetch endpoints from etcd cluster member list: %w", err))
	}
	var eps []string
	for _, m := range r.Members {
		eps = append(eps, m.GetClientURLs()...)
	}
	return eps, nil
}

// ask makes one request to one endpoint on a connection of its own.
func (s *session) ask(ep string, f func(ctx context.Context, c *clientv3.Client) error) error {
	c, err := s.client(ep)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := s.timeout()
	defer cancel()
	return f(ctx, c)
}

// explain prints, on standard error, why a request to an endpoint got no answer.
func (s *session) explain(err error, ep string) {
	for _, note := range s.diagnose(err, []string{ep}) {
		fmt.Fprintln(s.app.Stderr, note)
	}
}

func (a endpointCommands) health(cluster *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "health",
		Short: "Checks that each endpoint can answer a read that the cluster agrees on",
		Long: strings.TrimSpace(`
Checks that each endpoint can answer a read that the cluster agrees on, and that
no alarm is raised. Fails if one of them is not healthy.`),
		Example: examples("etcdctl endpoint health --cluster"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			s, err := a.session(cmd)
			if err != nil {
				return err
			}
			eps, err := s.targets(*cluster)
			if err != nil {
				return err
			}
			if _, err := s.config(); err != nil {
				return err
			}
			list, reasons := healthChecker{s}.all(eps)
			if err := s.out.endpointHealth(list); err != nil {
				return err
			}
			for _, h := range list {
				if h.Error != "" {
					return &exitErr{code: exitError, err: errors.New("unhealthy cluster"), notes: reasons}
				}
			}
			return nil
		}),
	}
}

// healthChecker is a session that checks the health of endpoints.
type healthChecker struct{ *session }

// all asks all endpoints concurrently and lists them in the order of their answers.
// reasons are lines about those that did not answer.
func (s healthChecker) all(eps []string) (list []endpointHealth, reasons []string) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, ep := range eps {
		wg.Go(func() {
			h, err := s.one(ep)
			why := s.diagnose(err, []string{ep})
			mu.Lock()
			defer mu.Unlock()
			list = append(list, h)
			reasons = append(reasons, why...)
		})
	}
	wg.Wait()
	return list, reasons
}

// one checks one endpoint. The error is that of the request, for diagnose.
func (s healthChecker) one(ep string) (endpointHealth, error) {
	cfg, err := s.config(ep)
	if err != nil {
		return endpointHealth{Endpoint: ep, Error: err.Error()}, nil
	}
	cfg.Logger = s.app.lg.Named("client")
	c, err := clientv3.New(*cfg)
	if err != nil {
		return endpointHealth{Endpoint: ep, Error: err.Error()}, err
	}
	defer c.Close()
	ctx, cancel := s.timeout()
	defer cancel()

	start := clock.Now()
	_, err = c.Get(ctx, "health")
	h := endpointHealth{Endpoint: ep, Took: clock.Since(start).String()}
	if err != nil && !errors.Is(err, rpctypes.ErrPermissionDenied) { // denying permission takes a quorum, too
		h.Error = err.Error()
		return h, err
	}
	alarms, err := c.AlarmList(ctx)
	if err != nil {
		h.Error = "Unable to fetch the alarm list"
		return h, err
	}
	if len(alarms.Alarms) > 0 {
		h.Error = "Active Alarm(s): "
		for _, al := range alarms.Alarms {
			switch al.GetAlarm() {
			case pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT:
				h.Error += al.GetAlarm().String() + " "
			default:
				h.Error += "UNKNOWN "
			}
		}
		return h, nil
	}
	h.Health = true
	return h, nil
}

func (a endpointCommands) status(cluster *bool) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Prints each endpoint's version, database size and place in raft",
		Long: strings.TrimSpace(`
Prints each endpoint's version, database size and place in raft. In the simple
format a line has the columns of the table: endpoint, member ID, version, storage
version, database size, size in use, percentage not in use, quota, is leader, is
learner, raft term, raft index, raft applied index, errors, downgrade target,
downgrade enabled.`),
		Example: examples("etcdctl endpoint status --cluster -w table"),
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			s, err := a.session(cmd)
			if err != nil {
				return err
			}
			eps, err := s.targets(*cluster)
			if err != nil {
				return err
			}
			var list []endpointStatus
			var failed error
			for _, ep := range eps {
				err := s.ask(ep, func(ctx context.Context, c *clientv3.Client) error {
					r, err := c.Status(ctx, ep)
					if err != nil {
						failed = fail(exitError, nil)
						fmt.Fprintf(a.Stderr, "Failed to get the status of endpoint %s (%v)\n", ep, err)
						s.explain(err, ep)
						return nil
					}
					list = append(list, endpointStatus{Endpoint: ep, Status: r})
					return nil
				})
				if err != nil {
					return err
				}
			}
			if err := s.out.endpointStatus(list); err != nil {
				return err
			}
			return failed
		}),
	}
}

func (a endpointCommands) hashKV(cluster *bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hashkv",
		Short: "Prints a hash of each endpoint's keys and history",
		Long: strings.TrimSpace(`
Prints a hash of each endpoint's keys and history. Members of one cluster that
were compacted at the same revision have the same hash at the same revision.`),
		Example: examples("etcdctl endpoint hashkv --cluster --rev=1000"),
	}
	rev := cmd.PersistentFlags().Int64("rev", 0, "hash up to this revision (0: all)")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		s, err := a.session(cmd)
		if err != nil {
			return err
		}
		eps, err := s.targets(*cluster)
		if err != nil {
			return err
		}
		var list []endpointHashKV
		var failed error
		for _, ep := range eps {
			err := s.ask(ep, func(ctx context.Context, c *clientv3.Client) error {
				r, err := c.HashKV(ctx, ep, *rev)
				if err != nil {
					failed = fail(exitError, err)
					fmt.Fprintf(a.Stderr, "Failed to get the hash of endpoint %s (%v)\n", ep, err)
					s.explain(err, ep)
					return nil
				}
				list = append(list, endpointHashKV{Endpoint: ep, HashKV: r})
				return nil
			})
			if err != nil {
				return err
			}
		}
		if err := s.out.endpointHashKV(list); err != nil {
			return err
		}
		return failed
	})
	return cmd
}
