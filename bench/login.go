package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"quorate/bench/lean"
)

const authMethod = "/etcdserverpb.Auth/"

const loginName, loginPassword = "root", "a password"

func userAndPassword() []byte {
	return appendBytes(appendBytes(nil, 1, []byte(loginName)), 2, []byte(loginPassword))
}

// logIn gets a token.
func logIn(ctx context.Context, s *side, conn int) (string, error) {
	r := &reply{keep: true}
	if err := call(ctx, s.clients.conns[conn%len(s.clients.conns)], authMethod+"Authenticate", userAndPassword(), r); err != nil {
		return "", err
	}
	var token []byte
	err := walk(r.body, func(n protowire.Number, _ protowire.Type, v []byte) {
		if n == 2 {
			token, _ = protowire.ConsumeBytes(v)
		}
	})
	if err != nil || len(token) == 0 {
		return "", fmt.Errorf("the answer to a login has no token (%w)", err)
	}
	return string(token), nil
}

// enableAuth creates the user root and enables authentication.
func enableAuth(ctx context.Context, s *side) error {
	for _, c := range []struct {
		method string
		body   []byte
	}{
		{"UserAdd", userAndPassword()},
		{"UserGrantRole", appendBytes(appendBytes(nil, 1, []byte(loginName)), 2, []byte(loginName))},
		{"AuthEnable", nil},
	} {
		if err := call(ctx, s.clients.conns[0], authMethod+c.method, c.body, &reply{}); err != nil {
			return fmt.Errorf("%s: %w", c.method, err)
		}
	}
	return nil
}

// logins has many clients log in at once, with paced puts of an authenticated client before and meanwhile. A
// refused put counts with the time that it took, a refused login not at all; the log of the run has their
// number.
func (r *run) logins(ctx context.Context, s *side) (map[string]float64, error) {
	token, err := logIn(ctx, s, 0)
	if err != nil {
		return nil, err
	}
	user, err := dial(ctx, s.addrs(), len(s.clients.conns), lean.Options{Fields: [][2]string{{"token", token}}})
	if err != nil {
		return nil, err
	}
	defer user.close()
	p := startPacer(user, pacedRate, pacedKeys)
	t := time.NewTimer(r.scale.span)
	<-t.C
	quiet, err := p.finish()
	if err != nil {
		return nil, err
	}
	p = startPacer(user, pacedRate, pacedKeys)
	began := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, r.scale.logins)
	for i := range errs {
		wg.Go(func() { _, errs[i] = logIn(ctx, s, i) })
	}
	wg.Wait()
	took := time.Since(began)
	during, err := p.finish()
	if during.ops == 0 {
		return nil, err
	}
	in := 0
	for _, err := range errs {
		if err == nil {
			in++
		}
	}
	if in == 0 {
		return nil, fmt.Errorf("no client could log in: %w", errs[0])
	}
	if refused := r.scale.logins - in; refused > 0 || p.failed > 0 {
		r.log("  %-5s refused %d of %d logins, %d of %d puts: %v", s.name, refused, r.scale.logins, p.failed, during.ops,
			errors.Join(append(slices.DeleteFunc(errs, func(err error) bool { return err == nil })[:min(1, refused)], err)...))
	}
	return map[string]float64{"login.rate": float64(in) / took.Seconds(),
		"login.put":  millis(during.percentile(0.99)),
		"login.calm": float64(during.percentile(0.99)) / float64(quiet.percentile(0.99))}, nil
}

func (r *run) login(ctx context.Context) {
	r.step(ctx, loginRows, 1, func(ctx context.Context, s *side) (map[string]float64, error) {
		return nil, enableAuth(ctx, s)
	})
	r.step(ctx, loginRows, 1, r.logins)
}

var loginRows = []string{"login.calm", "login.put", "login.rate"}
