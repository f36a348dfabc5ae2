package mixed

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// network is the peer network of a cluster: a gate in front of each member, through which the others reach it. A
// pair of members can be partitioned, for requests in either direction: then nothing passes between them until
// the cut is healed, as on a network that loses everything, or, if the cut is hard, connections between them are
// reset and new ones are closed immediately.
type network struct {
	mu    sync.Mutex
	gates map[*gate]bool
	cuts  map[[2]*gate]bool // by pair, in both orders; the value is whether the cut is hard
	moved chan struct{}     // closed and replaced at each change of cuts
}

func newNetwork() *network {
	return &network{gates: map[*gate]bool{}, cuts: map[[2]*gate]bool{}, moved: make(chan struct{})}
}

// gate accepts the connections to one member and passes them on.
type gate struct {
	net *network
	l   net.Listener
	wg  sync.WaitGroup

	// Guarded by net.mu.
	pid   int    // of the member's process
	addr  string // where the member listens
	conns map[net.Conn]*gate
}

// gate opens a gate that the test closes at its end.
func (n *network) gate(t *testing.T) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{net: n, l: l, conns: map[net.Conn]*gate{}}
	n.mu.Lock()
	n.gates[g] = true
	n.mu.Unlock()
	g.wg.Go(g.accept)
	t.Cleanup(func() {
		l.Close()
		n.mu.Lock()
		delete(n.gates, g)
		for c := range g.conns {
			c.Close()
		}
		n.change()
		n.mu.Unlock()
		g.wg.Wait()
	})
	return g
}

// change wakes up everything that waits for a cut to be healed. Must be called with mu held.
func (n *network) change() {
	close(n.moved)
	n.moved = make(chan struct{})
}

// URL is what the member advertises.
func (g *gate) URL() string { return "http://" + g.l.Addr().String() }

// lead makes the gate forward to a process that listens at addr.
func (g *gate) lead(pid int, addr string) {
	g.net.mu.Lock()
	defer g.net.mu.Unlock()
	g.pid, g.addr = pid, addr
}

// drop closes all current connections.
func (g *gate) drop() {
	g.net.mu.Lock()
	defer g.net.mu.Unlock()
	for c := range g.conns {
		c.Close()
	}
}

// cut partitions g from others.
func (n *network) cut(hard bool, g *gate, others ...*gate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, o := range others {
		n.cuts[[2]*gate{g, o}], n.cuts[[2]*gate{o, g}] = hard, hard
		if hard {
			for _, x := range []*gate{g, o} {
				for c, from := range x.conns {
					if from == g || from == o {
						c.Close()
					}
				}
			}
		}
	}
	n.change()
}

// mend heals all cuts.
func (n *network) mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
	n.change()
}

// pass waits until there is no cut between two members. It returns false if the cut is hard, or when the gate is
// closed.
func (n *network) pass(from, to *gate) bool {
	for {
		n.mu.Lock()
		hard, cut := n.cuts[[2]*gate{from, to}]
		open, moved := n.gates[to], n.moved
		n.mu.Unlock()
		if !open || hard {
			return false
		}
		if !cut {
			return true
		}
		<-moved
	}
}

func (g *gate) accept() {
	for {
		c, err := g.l.Accept()
		if err != nil {
			return
		}
		g.wg.Go(func() { g.serve(c) })
	}
}

// serve forwards one connection in both directions.
func (g *gate) serve(in net.Conn) {
	defer in.Close()
	from := g.net.dialer(in)
	if from == nil || !g.net.pass(from, g) {
		return
	}
	g.net.mu.Lock()
	addr := g.addr
	g.net.mu.Unlock()
	if addr == "" {
		return
	}
	out, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	g.net.mu.Lock()
	g.conns[in], g.conns[out] = from, from
	g.net.mu.Unlock()
	defer func() {
		g.net.mu.Lock()
		delete(g.conns, in)
		delete(g.conns, out)
		g.net.mu.Unlock()
	}()
	var wg sync.WaitGroup
	wg.Go(func() { g.pump(from, in, out) })
	g.pump(from, out, in)
	wg.Wait()
}

// pump copies until one side closes, and closes the other.
func (g *gate) pump(from *gate, src, dst net.Conn) {
	defer dst.Close()
	defer src.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := src.Read(b)
		if n > 0 {
			if !g.net.pass(from, g) {
				return
			}
			if _, err := dst.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// dialer returns the member whose process made a connection, nil if it no longer exists. The process may have
// just been started and not be known yet.
func (n *network) dialer(c net.Conn) *gate {
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		socket, err := socketOf(c)
		if err != nil || socket == "" {
			return nil
		}
		n.mu.Lock()
		pids := map[*gate]int{}
		for g := range n.gates {
			pids[g] = g.pid
		}
		n.mu.Unlock()
		for g, pid := range pids {
			if pid != 0 && holds(pid, socket) {
				return g
			}
		}
	}
	return nil
}

// socketOf returns the inode of the remote end's socket of a connection within this machine, in the form of
// /proc/PID/fd; "" if that end is closed.
func socketOf(c net.Conn) (string, error) {
	remote, local := c.RemoteAddr().(*net.TCPAddr), c.LocalAddr().(*net.TCPAddr)
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	return findSocket(bufio.NewScanner(f), remote.Port, local.Port), nil
}

// findSocket searches lines of /proc/net/tcp for the socket from one local port to another: "sl local rem st
// tx:rx tr:when retrnsmt uid timeout inode ...", addresses as ADDR:PORT in hex.
func findSocket(lines *bufio.Scanner, from, to int) string {
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 10 || port(f[1]) != from || port(f[2]) != to || f[9] == "0" {
			continue
		}
		return fmt.Sprintf("socket:[%s]", f[9])
	}
	return ""
}

func port(addr string) int {
	_, hex, _ := strings.Cut(addr, ":")
	p, err := strconv.ParseUint(hex, 16, 16)
	if err != nil {
		return -1
	}
	return int(p)
}

// holds reports whether a process has the socket open.
func holds(pid int, socket string) bool {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == socket {
			return true
		}
	}
	return false
}

func TestFindSocket(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1
   1: 0100007F:9C40 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 12 1
   2: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 13 1
   3: 0100007F:9C41 0100007F:1F90 06 00000000:00000000 03:00000000 00000000     0        0 0 3
`
	for _, c := range []struct {
		from, to int
		want     string
	}{{40000, 8080, "socket:[12]"}, {8080, 40000, "socket:[13]"}, {40001, 8080, ""}, {1, 2, ""}} {
		if got := findSocket(bufio.NewScanner(strings.NewReader(table)), c.from, c.to); got != c.want {
			t.Errorf("from port %d to %d: got %q, want %q", c.from, c.to, got, c.want)
		}
	}
}
