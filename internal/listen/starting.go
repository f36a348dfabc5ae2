package listen

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"quorate/internal/clock"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// A unit of Type=notify is killed when it has not said that it is ready within
// TimeoutStartSec, 90 s unless set. A start may take longer than that for good
// reasons, and one that is killed begins again and is killed again.

const (
	// startExtension is what a start asks for, each time from then on.
	startExtension = time.Minute
	// startPeriod is how often it does. The first time is at the beginning: an
	// extension counts only if it comes before the time is up, and that may be short.
	startPeriod = 10 * time.Second
	// statusPause is the time between two texts when there are many, statusBurst how
	// many may come at once.
	statusPause = time.Second
	statusBurst = 5
)

// Starting tells systemd that a start is under way, and what it does. Without a
// unit of Type=notify it does nothing. Safe for concurrent use.
type Starting struct {
	send          func(state string) // nil: nobody listens
	period, pause time.Duration
	done          chan struct{}

	mu    sync.Mutex
	texts *rate.Limiter
	what  func() string
	sent  string
	last  time.Time
	ended bool
}

// BeginStart begins to tell. It ends with End or Ready.
func BeginStart() *Starting {
	send := func(state string) { _, _ = daemon.SdNotify(false, state) }
	if os.Getenv("NOTIFY_SOCKET") == "" {
		send = nil
	}
	return beginStart(send, startPeriod, statusPause)
}

func beginStart(send func(string), period, pause time.Duration) *Starting {
	s := &Starting{send: send, period: period, pause: pause, done: make(chan struct{}), texts: rate.NewLimiter(rate.Every(pause), statusBurst)}
	if send != nil {
		s.tell()
		go s.run()
	}
	return s
}

// run repeats the extension, and sends the texts that came too soon after another.
func (s *Starting) run() {
	tick := clock.NewTicker(clock.System, s.pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.tell()
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
	s.tell()
}

// tell sends the text if it is another one, or if the extension is due.
func (s *Starting) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.send == nil || s.ended {
		return
	}
	text := "starting"
	if s.what != nil {
		text = strings.ReplaceAll(s.what(), "\n", " ")
	}
	if due := s.sent == "" || clock.Since(s.last) >= s.period; !due && (text == s.sent || !s.texts.Allow()) {
		return
	}
	s.sent, s.last = text, clock.Now()
	s.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=%s", startExtension.Microseconds(), text))
}

// Ready ends it because the process serves, and tells systemd so. The text of the
// start does not stay.
func (s *Starting) Ready(lg *zap.Logger) {
	s.End()
	notifyReady(lg)
	if s.send != nil {
		s.send("STATUS=serving")
	}
}

// End ends it when the unit will not be ready. It may be called again.
func (s *Starting) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		close(s.done)
	}
}
