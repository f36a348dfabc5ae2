package chaos

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"quorate/compat/child"
)

// rule is what the network does to packets from one machine to another. Its zero value delivers all.
type rule struct {
	cut    bool          // no packet arrives
	deaf   bool          // no data arrives: connections stay open, because handshakes and acknowledgements pass
	loss   float64       // part of the packets that are lost
	double float64       // part of the packets that arrive twice
	delay  time.Duration // of each packet
	jitter time.Duration // further delay, drawn for each packet, which reorders them
}

// wire is a network of machines 0 to n, of which 0 is this process and the others are network namespaces as
// in child.Machines. It forwards IP packets between their TUN devices.
type wire struct {
	child.Machines
	taps []*os.File
	mtu  int

	mu    sync.Mutex
	rules [][]rule // by sender and receiver
	r     *rand.Rand

	waiting                          atomic.Int64 // delayed packets, at most maxWaiting
	passed, lost, doubled, postponed atomic.Int64
}

// maxWaiting bounds the packets that are delayed at the same time; more are lost, as in the queue of a router.
const maxWaiting = 4096

// newWire creates n machines in the namespaces of this process; see child.Isolated.
func newWire(t *testing.T, n int, seed uint64) *wire {
	t.Helper()
	w := &wire{Machines: child.Machines(n), mtu: 9000, r: rand.New(rand.NewPCG(seed, 1))}
	for i := range n + 1 {
		name := fmt.Sprintf("chaos%d", i)
		tap, err := openTUN(name)
		if err != nil {
			t.Fatalf("open a TUN device: %v", err)
		}
		w.taps, w.rules = append(w.taps, tap), append(w.rules, make([]rule, n+1))
		ip := []string{}
		if i > 0 {
			child.Must(t, "ip", "netns", "add", w.Name(i))
			child.Must(t, "ip", "link", "set", name, "netns", w.Name(i))
			ip = []string{"-n", w.Name(i)}
		}
		for _, args := range [][]string{
			{"link", "set", "lo", "up"},
			{"addr", "add", w.address(i) + "/24", "dev", name},
			{"link", "set", name, "mtu", fmt.Sprint(w.mtu), "up"},
		} {
			child.Must(t, "ip", append(ip, args...)...)
		}
	}
	var done sync.WaitGroup
	for i := range w.taps {
		done.Go(func() { w.forward(i) })
	}
	t.Cleanup(func() {
		for _, tap := range w.taps {
			tap.Close()
		}
		done.Wait()
		for i := range n {
			child.Must(t, "ip", "netns", "del", w.Name(i+1))
		}
	})
	return w
}

// address is the address of machine i.
func (w *wire) address(i int) string {
	if i == 0 {
		return "10.0.0.254"
	}
	return w.IP(i)
}

// openTUN creates a TUN device of this namespace. The file stays connected to it when it moves to another one.
func openTUN(name string) (*os.File, error) {
	fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var request struct {
		name  [16]byte
		flags uint16
		_     [22]byte
	}
	copy(request.name[:15], name)
	request.flags = syscall.IFF_TUN | syscall.IFF_NO_PI
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.TUNSETIFF, uintptr(unsafe.Pointer(&request))); errno != 0 {
		syscall.Close(fd)
		return nil, errno
	}
	return os.NewFile(uintptr(fd), name), nil
}

// set changes the rule for packets from one machine to another.
func (w *wire) set(from, to int, r rule) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rules[from][to] = r
}

// forward passes on the packets that machine i sends, until its device is closed.
func (w *wire) forward(i int) {
	b := make([]byte, w.mtu)
	for {
		n, err := w.taps[i].Read(b)
		if err != nil {
			return
		}
		if to := w.receiver(b[:n]); to >= 0 && to != i {
			w.pass(i, to, b[:n])
		}
	}
}

// receiver returns the machine to which an IPv4 packet goes, -1 if it is none of them.
func (w *wire) receiver(p []byte) int {
	if len(p) < 20 || p[0]>>4 != 4 || p[16] != 10 || p[17] != 0 || p[18] != 0 {
		return -1
	}
	switch to := int(p[19]); {
	case to == 254:
		return 0
	case to > 0 && to < len(w.taps):
		return to
	}
	return -1
}

// pass applies the rule of a pair of machines to a packet.
func (w *wire) pass(from, to int, p []byte) {
	w.mu.Lock()
	r := w.rules[from][to]
	lost, doubled := r.cut || r.loss > 0 && w.r.Float64() < r.loss, r.double > 0 && w.r.Float64() < r.double
	if r.jitter > 0 {
		r.delay += time.Duration(w.r.Int64N(int64(r.jitter)))
	}
	w.mu.Unlock()
	if lost || r.deaf && hasData(p) {
		w.lost.Add(1)
		return
	}
	times := 1
	if doubled {
		times = 2
		w.doubled.Add(1)
	}
	for range times {
		if r.delay == 0 {
			w.write(to, p)
			continue
		}
		if w.waiting.Add(1) > maxWaiting {
			w.waiting.Add(-1)
			w.lost.Add(1)
			continue
		}
		w.postponed.Add(1)
		own := append([]byte(nil), p...)
		time.AfterFunc(r.delay, func() {
			w.waiting.Add(-1)
			w.write(to, own)
		})
	}
}

// write delivers a packet. One that does not fit into the queue of the device is lost.
func (w *wire) write(to int, p []byte) {
	if _, err := w.taps[to].Write(p); err == nil {
		w.passed.Add(1)
	} else if !errors.Is(err, os.ErrClosed) {
		w.lost.Add(1)
	}
}

// hasData reports whether a packet is one of TCP with at least a byte of payload.
func hasData(p []byte) bool {
	head := int(p[0]&15) * 4
	if p[9] != syscall.IPPROTO_TCP || len(p) < head+20 {
		return false
	}
	return int(binary.BigEndian.Uint16(p[2:])) > head+int(p[head+12]>>4)*4
}

func (w *wire) String() string {
	return fmt.Sprintf("%d packets delivered, %d lost, %d doubled, %d delayed", w.passed.Load(), w.lost.Load(), w.doubled.Load(), w.postponed.Load())
}
