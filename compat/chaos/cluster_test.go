package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/compat/child"
)

// member is one member of a cluster, across restarts. Machine i+1 is that of the member at position i.
type member struct {
	name   string
	binary string
	args   []string
	dir    string // working directory, in which it logs
	disk   *disk
	client *child.Client

	process *child.Process // the current one, or the last
	clock   *child.WallClock
	ahead   time.Duration // what its wall clock differs by, also after a restart
	down    bool          // killed, and not started again
	paused  bool
}

// cluster is the members of one act. It must be used by one goroutine.
type cluster struct {
	t       *testing.T
	w       *wire
	dir     string
	members []*member
	clocks  error // why wall clocks cannot be set, if they cannot
}

// newCluster starts a cluster whose members are of the given binaries, one a machine.
func newCluster(t *testing.T, w *wire, dir, memory string, binaries []string, flags ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, w: w, dir: dir}
	var initial []string
	for i := range binaries {
		initial = append(initial, fmt.Sprintf("%s=http://%s:2380", w.Name(i+1), w.IP(i+1)))
	}
	for i, binary := range binaries {
		m := &member{name: w.Name(i + 1), binary: binary, dir: filepath.Join(dir, w.Name(i+1))}
		m.disk = newDisk(t, memory, i)
		peer, client := fmt.Sprintf("http://%s:2380", w.IP(i+1)), fmt.Sprintf("http://%s:2379", w.IP(i+1))
		m.args = append([]string{"--name=" + m.name, "--data-dir=" + filepath.Join(m.disk.mount, "data"),
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--initial-cluster=" + strings.Join(initial, ",")}, flags...)
		m.client = child.Dial(t, w.IP(i+1)+":2379")
		c.members = append(c.members, m)
	}
	for i := range c.members {
		c.start(i)
	}
	return c
}

// start starts the process of a member, with the wall clock that its machine has.
func (c *cluster) start(i int) {
	c.t.Helper()
	m := c.members[i]
	m.process = child.Start(c.t, child.Config{Program: "ip", Args: c.w.On(i+1, m.binary, m.args...), Dir: m.dir})
	m.down = false
	if c.clocks != nil {
		return
	}
	var err error
	if m.clock, err = child.TakeClock(m.process.PID(), m.binary); err == nil {
		err = m.clock.Jump(m.ahead)
	}
	switch {
	case errors.Is(err, child.ErrNoClock):
		c.clocks = err
	case err != nil && m.process.Running():
		c.t.Fatalf("%s: take over its clock: %v", m.name, err)
	}
}

// jump sets the wall clock of a member.
func (c *cluster) jump(i int, ahead time.Duration) error {
	m := c.members[i]
	m.ahead = ahead
	if m.down {
		return nil
	}
	return m.clock.Jump(ahead)
}

// kill kills members almost at the same time.
func (c *cluster) kill(which ...int) {
	for _, i := range which {
		c.members[i].process.Signal(syscall.SIGKILL)
		c.members[i].down = true
	}
}

// restart starts killed members again. The killed process may still wait for its disk.
func (c *cluster) restart(which ...int) {
	c.t.Helper()
	for _, i := range which {
		c.members[i].process.Wait(c.t, limit)
		c.start(i)
	}
}

// pause stops the process of a member, or lets it go on.
func (c *cluster) pause(i int, on bool) {
	m := c.members[i]
	m.paused = on
	if on {
		m.process.Signal(syscall.SIGSTOP)
	} else {
		m.process.Signal(syscall.SIGCONT)
	}
}

// leader returns the position of the member that became leader last, as far as members answer, or -1.
func (c *cluster) leader() int {
	best, term := -1, uint64(0)
	for i, m := range c.members {
		if m.down || m.paused {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		s, err := m.client.Maintenance.Status(ctx, &pb.StatusRequest{})
		cancel()
		if err == nil && s.Leader == s.Header.MemberId && s.RaftTerm > term {
			best, term = i, s.RaftTerm
		}
	}
	return best
}

// alive fails the test if a process has exited that no fault killed.
func (c *cluster) alive() {
	c.t.Helper()
	for _, m := range c.members {
		if !m.down && !m.process.Running() {
			c.t.Fatalf("%s exited by itself with code %d; its log ends with:\n%s", m.name, m.process.Code(), m.process.Tail(15))
		}
	}
}

// healthy waits until a linearizable read and a write succeed at every member.
func (c *cluster) healthy() {
	c.t.Helper()
	for i, m := range c.members {
		child.Eventually(c.t, limit, m.name+" serves", func() error {
			c.alive()
			if _, _, err := m.client.GetWithin(3*time.Second, "any"); err != nil {
				return err
			}
			_, err := m.client.PutWithin(3*time.Second, fmt.Sprintf("healthy-%d", i), "v")
			return err
		})
	}
}

// uncorrupted checks that no member differs from the others as far as the members themselves have found out.
func (c *cluster) uncorrupted() {
	c.t.Helper()
	var r *pb.AlarmResponse
	child.Eventually(c.t, limit, "the alarms", func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		r, err = c.members[0].client.Maintenance.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_GET})
		return err
	})
	if len(r.Alarms) > 0 {
		c.t.Errorf("alarms are raised: %v", r.Alarms)
	}
}

// logs checks that no process of the cluster has panicked.
func (c *cluster) logs() {
	c.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, "*.log"))
	if err != nil || len(files) < len(c.members) {
		c.t.Errorf("%d logs: %v", len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			c.t.Error(err)
		}
		for line := range strings.Lines(string(b)) {
			for _, bad := range []string{`"level":"panic"`, `"level":"fatal"`, "panic: ", "goroutine 1 [", "fatal error: "} {
				if strings.Contains(line, bad) && (bad[0] == '"' || strings.HasPrefix(line, bad)) {
					c.t.Errorf("%s: %s", filepath.Base(f), line)
				}
			}
		}
	}
}

// save copies what is needed to look into a failure to a directory that stays.
func (c *cluster) save(to string) {
	for _, m := range c.members {
		into := filepath.Join(to, filepath.Base(c.dir), m.name)
		if err := os.MkdirAll(into, 0o700); err != nil {
			c.t.Error(err)
			return
		}
		if out, err := child.Run(limit, "cp", "-a", filepath.Join(m.disk.mount, "data"), into); err != nil {
			c.t.Errorf("keep the data of %s: %v: %s", m.name, err, out)
		}
	}
	if out, err := child.Run(limit, "sh", "-c", `cp -a "$1"/*.log "$2"`, "sh", c.dir, filepath.Join(to, filepath.Base(c.dir))); err != nil {
		c.t.Errorf("keep the logs: %v: %s", err, out)
	}
	c.t.Logf("data and logs are in %s", to)
}
