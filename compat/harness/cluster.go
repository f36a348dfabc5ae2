package harness

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Cluster is a set of members that were started together.
type Cluster struct{ Members []*Member }

const startAttempts = 3 // for ports that are taken between selection and use

// StartCluster starts one member per binary, below dir, and waits until all are ready. Different binaries give a
// mixed cluster. args are additional flags of every member.
func StartCluster(ctx context.Context, dir string, binaries []string, args ...string) (*Cluster, error) {
	var last error
	for attempt := range startAttempts {
		c, err := startCluster(ctx, filepath.Join(dir, fmt.Sprintf("try%d", attempt)), binaries, args)
		if err == nil {
			return c, nil
		}
		last = err
		if c == nil {
			return nil, err
		}
		taken := false
		for _, m := range c.Members {
			taken = taken || m.addrInUse()
		}
		c.Kill()
		if !taken {
			break
		}
	}
	return nil, last
}

func startCluster(ctx context.Context, dir string, binaries, args []string) (*Cluster, error) {
	addrs, err := FreeAddrs(2 * len(binaries))
	if err != nil {
		return nil, err
	}
	var initial []string
	for i := range binaries {
		initial = append(initial, fmt.Sprintf("m%d=http://%s", i, addrs[2*i+1]))
	}
	c := &Cluster{}
	for i, bin := range binaries {
		m, err := Start(Config{
			Binary: bin, Name: fmt.Sprintf("m%d", i), Dir: dir,
			ClientAddr: addrs[2*i], PeerAddr: addrs[2*i+1],
			InitialCluster: strings.Join(initial, ","), Args: args,
		})
		if err != nil {
			c.Kill()
			return nil, err
		}
		c.Members = append(c.Members, m)
	}
	return c, c.WaitReady(ctx)
}

// StartSingle starts a single member described by cfg and waits until it is ready.
func StartSingle(ctx context.Context, cfg Config) (*Member, error) {
	var last error
	for range startAttempts {
		m, err := Start(cfg)
		if err != nil {
			return nil, err
		}
		if last = m.WaitReady(ctx); last == nil {
			return m, nil
		}
		taken := m.addrInUse()
		if err := m.Kill(); err != nil {
			return nil, errors.Join(last, err)
		}
		if !taken {
			break
		}
	}
	return nil, last
}

// WaitReady waits until every member is ready.
func (c *Cluster) WaitReady(ctx context.Context) error {
	errs := make([]error, len(c.Members))
	var wg sync.WaitGroup
	for i, m := range c.Members {
		wg.Go(func() { errs[i] = m.WaitReady(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ClientAddrs lists the client addresses in member order.
func (c *Cluster) ClientAddrs() []string {
	var addrs []string
	for _, m := range c.Members {
		addrs = append(addrs, m.ClientAddr())
	}
	return addrs
}

// Kill kills every process. It ignores errors, because its callers are cleaning up.
func (c *Cluster) Kill() {
	for _, m := range c.Members {
		_ = m.Kill()
	}
}

// Stop shuts every process down and kills those still running after ten seconds.
func (c *Cluster) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, m := range c.Members {
		wg.Go(func() { _ = m.Stop(ctx) })
	}
	wg.Wait()
}
