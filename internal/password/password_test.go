package password

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

func TestPasswordsWaitTheirTurn(t *testing.T) {
	stop := make(chan struct{})
	busy, stopped := errors.New("busy"), errors.New("stopped")
	p := New(Options{Cost: 4, Stop: stop, Busy: busy, Stopped: stopped})
	for range cap(p.slots) {
		p.slots <- struct{}{} // all slots are in use
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	p.waiting.Store(maxWaiting)
	if _, err := p.Hash(ctx, "x"); !errors.Is(err, busy) {
		t.Errorf("one more than may wait: got %v", err)
	}
	p.waiting.Store(0)
	waited := make(chan error, 1)
	go func() {
		_, err := p.Hash(ctx, "x")
		waited <- err
	}()
	for p.waiting.Load() != 1 {
		runtime.Gosched()
	}
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("a caller who is gone: got %v", err)
	}
	<-p.slots
	hash, err := p.Hash(context.Background(), "x")
	if err != nil {
		t.Fatal(err)
	}
	for password, want := range map[string]bool{"x": true, "y": false} {
		if ok, err := p.Matches(context.Background(), hash, password); ok != want || err != nil {
			t.Errorf("%s: got %v, %v", password, ok, err)
		}
	}
	p.slots <- struct{}{}
	close(stop)
	if _, err := p.Matches(context.Background(), hash, "x"); !errors.Is(err, stopped) {
		t.Errorf("a member that stops: got %v", err)
	}
}

// Follows a password from a request to the store, and back at a login.
func TestRequests(t *testing.T) {
	ctx := t.Context()
	h := New(Options{Cost: MinCost})
	matches := func(hashed, try string) bool {
		t.Helper()
		hash, err := Stored("", hashed)
		if err != nil {
			t.Fatal(err)
		}
		ok, err := h.Matches(ctx, hash, try)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	for _, tt := range []struct {
		password string
		without  bool // the option
		opens    []string
	}{
		{password: "x", opens: []string{"x"}},
		{password: "", opens: []string{""}},
		{password: "x", without: true}, // and the password stays out of the log
	} {
		r := &pb.AuthUserAddRequest{Password: tt.password, Options: &authpb.UserAddOptions{NoPassword: tt.without}}
		if err := h.Added(ctx, r); err != nil || r.Password != "" {
			t.Errorf("%+v: %v, the log gets the password %q", tt, err, r.Password)
		}
		for _, try := range []string{"", "x", "y"} {
			if got := matches(r.HashedPassword, try); got != slices.Contains(tt.opens, try) {
				t.Errorf("%+v: %q lets in: %v", tt, try, got)
			}
		}
	}
	ready := &pb.AuthUserAddRequest{Password: "ready"}
	if err := h.Added(ctx, ready); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ password, hashed, opens string }{
		{"new", "", "new"}, {"new", ready.HashedPassword, "new"}, {"", ready.HashedPassword, "ready"}, {"", "", "nothing"},
	} {
		r := &pb.AuthUserChangePasswordRequest{Password: tt.password, HashedPassword: tt.hashed}
		if err := h.Changed(ctx, r); err != nil || r.Password != "" {
			t.Errorf("%+v: %v, the log gets the password %q", tt, err, r.Password)
		}
		for _, try := range []string{"", "new", "ready"} {
			if got := matches(r.HashedPassword, try); got != (try == tt.opens) {
				t.Errorf("%+v: %q lets in: %v", tt, try, got)
			}
		}
	}
	for _, r := range [][2]string{{"plain", ""}, {"", "not base64!"}} {
		if _, err := Stored(r[0], r[1]); !errors.Is(err, ErrNoHash) {
			t.Errorf("%q: %v", r, err)
		}
	}
	if hash, err := Stored("", "eA=="); err != nil || string(hash) != "x" {
		t.Errorf("what is not bcrypt is stored as it is: %q, %v", hash, err)
	}
}

func TestCosts(t *testing.T) {
	for cost, want := range map[int]int{0: DefaultCost, MinCost - 1: DefaultCost, MinCost: MinCost, 12: 12, MaxCost: MaxCost, MaxCost + 1: DefaultCost} {
		if got := New(Options{Cost: cost}).o.Cost; got != want {
			t.Errorf("cost %d becomes %d, want %d", cost, got, want)
		}
	}
	hash, err := New(Options{Cost: MinCost}).HashV2(t.Context(), "x")
	if cost, _, _, _ := splitHash(hash); err != nil || cost != v2Cost {
		t.Errorf("v2: cost %d, %v", cost, err)
	}
}
