package h2

import (
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
	"google.golang.org/grpc"

	"quorate/internal/h2"
)

// TestH2Spec runs every case of h2spec against our server and grpc-go's.
func TestH2Spec(t *testing.T) {
	ours := h2.New(h2.Options{MaxStreams: 100})
	theirs := grpc.NewServer(grpc.MaxConcurrentStreams(100))
	failed := map[string][]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	quiet(t, func() {
		for name, s := range map[string]interface{ Serve(net.Listener) error }{"ours": ours, "grpc-go's": theirs} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			go s.Serve(l)
			wg.Go(func() {
				passed, cases := judge(l.Addr().(*net.TCPAddr).Port)
				mu.Lock()
				defer mu.Unlock()
				failed[name] = cases
				t.Logf("%s: %d passed, %d failed", name, passed, len(cases))
				if passed < 100 {
					t.Errorf("%s: only %d cases passed: the run proves nothing", name, passed)
				}
			})
		}
		wg.Wait()
	})
	ours.Stop()
	theirs.Stop()
	for _, c := range failed["ours"] {
		if !slices.Contains(failed["grpc-go's"], c) {
			t.Errorf("grpc-go passes what we fail: %s", c)
		} else {
			t.Logf("both fail: %s", c)
		}
	}
}

// judge runs the suite, which prints to standard output, against a port.
func judge(port int) (passed int, failed []string) {
	c := &config.Config{Host: "127.0.0.1", Port: port, Path: "/etcdserverpb.KV/Range", Timeout: 2 * time.Second, MaxHeaderLen: 4000}
	for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		g.Test(c)
		p, f := results(g, g.Name)
		passed, failed = passed+p, append(failed, f...)
	}
	return passed, failed
}

func results(g *spec.TestGroup, path string) (passed int, failed []string) {
	for i, c := range g.Tests {
		switch {
		case c.Result == nil || c.Result.Skipped:
		case c.Result.Failed:
			failed = append(failed, fmt.Sprintf("%s (%d) %s", path, i+1, c.Desc))
		default:
			passed++
		}
	}
	for _, sub := range g.Groups {
		p, f := results(sub, path+" / "+sub.Section+" "+sub.Name)
		passed, failed = passed+p, append(failed, f...)
	}
	return passed, failed
}

// quiet runs f with standard output discarded.
func quiet(t *testing.T, f func()) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	old := os.Stdout
	os.Stdout = null
	defer func() { os.Stdout = old }()
	f()
}
