package child

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Writers write without pause, as clients that know all members: after an error, each moves on to the next
// member.
type Writers struct {
	clients []*Client
	limit   time.Duration // timeout of one call
	done    chan struct{}
	wg      sync.WaitGroup
	writes  atomic.Int64

	mu  sync.Mutex
	met Met
}

// Met is what writers have observed.
type Met struct {
	Writes int64
	Worst  time.Duration  // the longest time between two successes of one writer
	Errors map[string]int // count of each error text
}

// String reports it in a few lines.
func (m Met) String() string {
	n := 0
	var lines []string
	for text, times := range m.Errors {
		n += times
		lines = append(lines, fmt.Sprintf("\n  %d times %s", times, text))
	}
	slices.Sort(lines)
	return fmt.Sprintf("%d writes, the longest wait %v, %d errors%s", m.Writes, m.Worst.Round(time.Millisecond), n, strings.Join(lines, ""))
}

// StartWriters starts n writers on the members at addrs.
func StartWriters(t testing.TB, addrs []string, n int, limit time.Duration) *Writers {
	t.Helper()
	w := &Writers{limit: limit, done: make(chan struct{}), met: Met{Errors: map[string]int{}}}
	for _, addr := range addrs {
		w.clients = append(w.clients, Dial(t, addr))
	}
	for i := range n {
		w.wg.Go(func() { w.write(i) })
	}
	return w
}

func (w *Writers) write(n int) {
	at := n % len(w.clients)
	for i := 0; ; i++ {
		began := time.Now()
		for {
			select {
			case <-w.done:
				w.waited(time.Since(began))
				return
			default:
			}
			_, err := w.clients[at].PutWithin(w.limit, fmt.Sprintf("writers/%d", n), fmt.Sprint(i))
			if err == nil {
				break
			}
			w.failed(err)
			at = (at + 1) % len(w.clients)
		}
		w.waited(time.Since(began))
		w.writes.Add(1)
	}
}

func (w *Writers) waited(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.met.Worst = max(w.met.Worst, d)
}

func (w *Writers) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.met.Errors[err.Error()]++
}

// More waits for n more writes.
func (w *Writers) More(t testing.TB, limit time.Duration, n int64) {
	t.Helper()
	before := w.writes.Load()
	Eventually(t, limit, "writes go on", func() error {
		if now := w.writes.Load(); now < before+n {
			return fmt.Errorf("%d writes", now-before)
		}
		return nil
	})
}

// Stop stops the writers and returns what they observed.
func (w *Writers) Stop() Met {
	close(w.done)
	w.wg.Wait()
	w.met.Writes = w.writes.Load()
	return w.met
}
