package listen

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// A unit of Type=notify is killed when it has not said that it is ready within
// TimeoutStartSec, 90 s unless set. A start may take longer than that for good
// reasons, and one that is killed begins again and is killed again.

const (
	// startExtension is what a start asks for, each time from then on.
	startExtension = time.Minute
	// startPeriod is how often it does.
	startPeriod = 10 * time.Second
	// statusPause is the shortest time between two texts.
	statusPause = time.Second
)

// Starting tells systemd that a start is under way, and what it does. Without a
// unit of Type=notify it does nothing. Safe for concurrent use.
type Starting struct {
	send   func(state string)
	period time.Duration
	done   chan struct{}

	mu    sync.Mutex
	what  func() string
	sent  string
	last  time.Time
	ended bool
}

// BeginStart begins to tell. It ends with End.
func BeginStart() *Starting {
	send := func(state string) { _, _ = daemon.SdNotify(false, state) }
	if os.Getenv("NOTIFY_SOCKET") == "" {
		send = nil
	}
	return beginStart(send, startPeriod)
}

func beginStart(send func(string), period time.Duration) *Starting {
	s := &Starting{send: send, period: period, done: make(chan struct{})}
	if send != nil {
		go s.run()
	}
	return s
}

func (s *Starting) run() {
	tick := time.NewTicker(s.period)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.tell(true)
		case <-s.done:
			return
		}
	}
}

// Status says what the start is doing.
func (s *Starting) Status(text string) { s.Follow(func() string { return text }) }

// Follow has what asked, now and again, what the start is doing.
func (s *Starting) Follow(what func() string) {
	s.mu.Lock()
	s.what = what
	s.mu.Unlock()
	s.tell(false)
}

// tell sends the text if it is another one, or if the extension is due.
func (s *Starting) tell(due bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.send == nil || s.ended {
		return
	}
	text := "starting"
	if s.what != nil {
		text = strings.ReplaceAll(s.what(), "\n", " ")
	}
	if !due && (text == s.sent || time.Since(s.last) < statusPause) {
		return
	}
	s.sent, s.last = text, time.Now()
	s.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", startExtension.Microseconds(), text))
}

// End ends it, before the unit is ready or when it will not be.
func (s *Starting) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		close(s.done)
	}
}
