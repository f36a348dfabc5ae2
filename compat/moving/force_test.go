package moving

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// acknowledged writes keys to all members until they have acknowledged some hundred, kills all members with kill
// -9, and returns the acknowledged keys. With quiet all calls have returned by then, and nothing follows the
// last entry; otherwise writes are in flight.
func acknowledged(t *testing.T, ms []*harness.Member, quiet bool) (keys []string) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	enough, ended := make(chan struct{}), make(chan struct{})
	for w := range 6 {
		c := child.Dial(t, ms[w%len(ms)].ClientAddr())
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-ended:
					return
				default:
				}
				key := fmt.Sprintf("acked/%d/%d", w, i)
				if _, err := c.PutWithin(time.Second, key, "v"); err != nil {
					continue
				}
				mu.Lock()
				if keys = append(keys, key); len(keys) == 300 {
					close(enough)
				}
				mu.Unlock()
			}
		})
	}
	select {
	case <-enough:
	case <-time.After(limit):
		t.Error("the writers do not come on")
	}
	kill := func() {
		for _, m := range ms {
			end(t, m, true)
		}
	}
	if !quiet {
		kill()
	}
	close(ended)
	wg.Wait()
	if quiet {
		kill()
	}
	return keys
}

// missing returns the keys that a member does not have.
func missing(t *testing.T, m *harness.Member, keys []string) (out []string) {
	t.Helper()
	c := child.Dial(t, m.ClientAddr())
	for _, k := range keys {
		_, there, err := c.GetWithin(limit, k)
		must(t, err)
		if !there {
			out = append(out, k)
		}
	}
	return out
}

// A member that was stopped by kill -9 and handed over has every acknowledged write when etcd is started on it
// with --force-new-cluster, which drops what is not known to be committed.
func TestForceNewClusterAfterKill(t *testing.T) {
	t.Parallel()
	for _, quiet := range []bool{true, false, true, false} {
		m := start(t, etcd)
		keys := acknowledged(t, []*harness.Member{m}, quiet)
		back(t, m)
		m.SetArgs("--force-new-cluster")
		become(t, m, real37)
		if lost := missing(t, m, keys); len(lost) > 0 {
			t.Errorf("of %d acknowledged keys, %d are gone: %q", len(keys), len(lost), lost)
		}
		write(t, m, "goes", "on")
	}
}

// The same for a backup, which is for --force-new-cluster alone.
func TestBackupAfterKill(t *testing.T) {
	t.Parallel()
	m := start(t, etcd)
	keys := acknowledged(t, []*harness.Member{m}, true)
	for _, by := range []string{real35, etcd} {
		to := t.TempDir()
		done(t, etcdutl, "backup", "--data-dir", m.DataDir(), "--backup-dir", filepath.Join(to, "m0.etcd"), "--with-v3")
		n, err := harness.StartSingle(withLimit(t), harness.Config{Binary: by, Dir: to, Args: []string{"--force-new-cluster"}})
		must(t, err)
		t.Cleanup(func() { n.Kill() })
		if lost := missing(t, n, keys); len(lost) > 0 {
			t.Errorf("%s: of %d acknowledged keys, %d are gone: %q", filepath.Base(by), len(keys), len(lost), lost)
		}
	}
}

// In a cluster of three no member alone knows how much of the end of its log is committed. The way that the tool
// names keeps every acknowledged write on each of the members that had it: ours goes on alone first, and then
// the directory is handed over.
func TestForceNewClusterOfThree(t *testing.T) {
	t.Parallel()
	cl, err := harness.StartCluster(withLimit(t), t.TempDir(), []string{etcd, etcd, etcd})
	must(t, err)
	t.Cleanup(cl.Kill)
	keys := acknowledged(t, cl.Members, true)
	has := map[string]int{}
	for _, m := range cl.Members {
		m.SetArgs("--force-new-cluster")
		become(t, m, etcd)
		end(t, m, false)
		back(t, m)
		become(t, m, real37) // again with --force-new-cluster
		lost := map[string]bool{}
		for _, k := range missing(t, m, keys) {
			lost[k] = true
		}
		for _, k := range keys {
			if !lost[k] {
				has[k]++
			}
		}
		end(t, m, true)
	}
	for _, k := range keys {
		if has[k] < 2 {
			t.Errorf("%s is on %d of three members", k, has[k])
		}
	}
}

// A member of several that is handed over right after kill -9 learns from its cluster what is committed, and has
// it.
func TestMemberOfThreeAfterKill(t *testing.T) {
	t.Parallel()
	cl, err := harness.StartCluster(withLimit(t), t.TempDir(), []string{etcd, etcd, etcd})
	must(t, err)
	t.Cleanup(cl.Kill)
	keys := acknowledged(t, cl.Members, false)
	for _, m := range cl.Members {
		back(t, m)
		must(t, m.SetBinary(real37))
		must(t, m.Restart())
	}
	for _, m := range cl.Members {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		must(t, m.WaitReady(ctx))
	}
	if lost := missing(t, cl.Members[0], keys); len(lost) > 0 {
		t.Errorf("of %d acknowledged keys, %d are gone: %q", len(keys), len(lost), lost)
	}
	hashes(t, "all etcd's", cl.Members)
}
