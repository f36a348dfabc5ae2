package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"quorate/bench/lean"
)

// A load on a server that is already running, such as one that is being profiled.

// The data that is read: the number of keys, and the size of their values in bytes.
var (
	driveKeys  = 10_000
	driveValue = 256
)

// driven are the available loads, each with its request.
var driven = []struct {
	name, method string
	request      func(b []byte, seq int) []byte
}{
	{"all", methodRange, func(b []byte, _ int) []byte {
		return rangeRequest(b, []byte("read/"), rangeOptions{end: []byte("read0")})
	}},
	{"put", methodPut, putAt},
	{"get", methodRange, func(b []byte, seq int) []byte { return getAt(b, seq, driveKeys, false) }},
	{"serializable", methodRange, func(b []byte, seq int) []byte { return getAt(b, seq, driveKeys, true) }},
	{"list", methodRange, func(b []byte, seq int) []byte {
		return rangeRequest(b, []byte("read/"), rangeOptions{end: []byte("read0"), limit: 500})
	}},
	{"watch", methodWatch, nil},
}

func drivenNames() string {
	var names []string
	for _, d := range driven {
		names = append(names, d.name)
	}
	return strings.Join(names, ", ")
}

// drive loads the servers at addrs and reports the results, and what the load cost this process.
func drive(ctx context.Context, addrs []string, name string, n, conns int, d time.Duration) error {
	i := slices.IndexFunc(driven, func(x struct {
		name, method string
		request      func(b []byte, seq int) []byte
	}) bool {
		return x.name == name
	})
	if i < 0 {
		return fmt.Errorf("unknown load %q; there are %s", name, drivenNames())
	}
	var o lean.Options
	for i, a := range addrs {
		if plain, secure := strings.CutPrefix(a, "https://"); secure {
			addrs[i], o.TLS = plain, &tls.Config{InsecureSkipVerify: true} // a server under test, often with --auto-tls
		}
	}
	c, err := dial(ctx, addrs, conns, o)
	if err != nil {
		return err
	}
	defer c.close()
	if name != "put" {
		if err := preload(ctx, c, "read", 0, driveKeys, driveValue, 0); err != nil {
			return err
		}
	}
	before := ownCPU()
	var out outcome
	if what := driven[i]; what.request != nil {
		out, err = closedLoop(ctx, c, n, d, what.method, what.request)
	} else {
		f, err := openFan(c, n)
		if err != nil {
			return err
		}
		before = ownCPU()
		var events int
		if out, events, err = f.load(ctx, d); err != nil {
			return err
		}
		fmt.Printf("%d events, %.2f µs each of the generator\n", events, micros(ownCPU()-before, max(1, events)))
	}
	if err != nil {
		return err
	}
	fmt.Printf("%s, %d clients on %d connections: %.0f/s, p50 %.3f ms, p99 %.3f ms, generator %.2f µs an operation\n", name, n, conns,
		float64(out.ops)/d.Seconds(), millis(out.percentile(0.5)), millis(out.percentile(0.99)), micros(ownCPU()-before, max(1, out.ops)))
	return nil
}

// ownCPU is the CPU time that this process has used so far.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
