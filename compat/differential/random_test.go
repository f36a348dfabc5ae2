package differential

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var (
	seedFlag  = flag.Uint64("seed", 1, "first seed of the random operations")
	seedsFlag = flag.Int("seeds", 6, "how many seeds")
	opsFlag   = flag.Int("ops", 300, "random operations of a seed")
	shrinkFor = flag.Duration("shrink", time.Minute, "how long to look for a shorter list after a failure; 0: not at all")
)

// TestRandom sends random operations to both servers and compares the answers. A failure prints the seed and the
// shortest list of operations that a minute of attempts found.
func TestRandom(t *testing.T) {
	for i := range *seedsFlag {
		seed := *seedFlag + uint64(i)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			r := &runner{t: t}
			ops := randomOps(seed, *opsFlag, false)
			at, lines := r.run(ops)
			if lines == nil {
				return
			}
			ops = ops[:at+1]
			ops = shrink(ops, *shrinkFor, func(ops []randomOp) bool {
				n, l := r.run(ops)
				if l == nil || n != len(ops)-1 {
					return false
				}
				lines = l
				return true
			})
			var list strings.Builder
			for i, o := range ops {
				fmt.Fprintf(&list, "%4d %s\n", i+1, o.name)
			}
			t.Errorf("seed %d: the last of these is answered differently (a: real, b: ours):\n%s     %s", seed, &list, strings.Join(lines, "\n     "))
		})
	}
}

// shrink removes operations as long as the list still fails.
func shrink(ops []randomOp, limit time.Duration, fails func([]randomOp) bool) []randomOp {
	end := time.Now().Add(limit)
	for size := len(ops) / 2; size > 0; size /= 2 {
		for from := 0; from+size < len(ops); { // the last one stays
			if time.Now().After(end) {
				return ops
			}
			if less := slices.Delete(slices.Clone(ops), from, from+size); fails(less) {
				ops = less
			} else {
				from += size
			}
		}
	}
	return ops
}

// runner runs lists of operations against fresh servers.
type runner struct {
	t *testing.T
	n int
}

// run returns the first operation that is answered differently, and how.
func (r *runner) run(ops []randomOp) (at int, lines []string) {
	r.n++
	ctx := context.Background()
	o := Options{A: *flagA, B: *flagB}
	sec := section{args: []string{"--unsafe-no-fsync", "--bcrypt-cost=4"}}
	members, err := startPair(ctx, o, sec, filepath.Join(r.t.TempDir(), fmt.Sprint(r.n)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer members[0].Kill()
	defer members[1].Kill()
	var pair [2]*session
	connect := func(j int) {
		s, err := newSession(members[j].ClientAddr())
		if err != nil {
			r.t.Fatal(err)
		}
		if old := pair[j]; old != nil {
			s.rev = old.rev // which tokens survive depends on what was flushed
			old.close()
		}
		pair[j] = s
	}
	for j := range pair {
		connect(j)
		defer func() { pair[j].close() }()
	}
	for i, op := range ops {
		var answers [2]answer
		for j, m := range members {
			octx, cancel := context.WithTimeout(ctx, opTimeout)
			if op.web != "" {
				answers[j] = ask(octx, m.PeerURL(), op.web)
			} else if op.restart {
				m.Kill()
				err := m.Restart()
				if err != nil {
					r.t.Fatal(err)
				}
				connect(j)
				if err := serving(octx, pair[j]); err != nil {
					r.t.Fatalf("%v; log ends with:\n%s", err, m.LogTail(10))
				}
			} else {
				answers[j] = op.do(octx, pair[j])
			}
			cancel()
			if !m.Running() {
				return i, []string{fmt.Sprintf("server %c has ended: %s", 'a'+j, m.LogTail(5))}
			}
		}
		if lines := compare(answers[0], answers[1]); len(lines) > 0 {
			return i, lines
		}
	}
	return 0, nil
}

// serving waits until a linearizable read is answered, even if only by a refusal of permission. /health is
// unhealthy while there are alarms.
func serving(ctx context.Context, s *session) error {
	for {
		once, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := s.kv.Range(once, &pb.RangeRequest{Key: []byte("a")})
		cancel()
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown:
		default:
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond): // retried, whatever it waits for
		}
	}
}
