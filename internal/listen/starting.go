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

// systemd kills a unit of Type=notify that is not ready within TimeoutStartSec, 90 s by
// default. A start may legitimately take longer, and a killed start begins again and is
// killed again.

const (
	// startExtension is the extension that a start requests each time.
	startExtension = time.Minute
	// startPeriod is the interval of these requests. The first is sent immediately: an
	// extension must arrive before the timeout, which may be short.
	startPeriod = 10 * time.Second
	// statusPause is the minimum interval between status texts if there are many;
	// statusBurst of them may be sent at once.
	statusPause = time.Second
	statusBurst = 5
)

// Starting reports to systemd that a start is in progress, with its status. It does nothing
// outside a unit of Type=notify. Safe for concurrent use.
type Starting struct {
	send          func(state string) // nil outside such a unit
	period, pause time.Duration
	done          chan struct{}

	mu    sync.Mutex
	texts *rate.Limiter
	what  func() string
	sent  string
	last  time.Time
	ended bool
}

// BeginStart starts reporting, until End or Ready.
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

// run repeats the extension, and sends texts that came too soon after another one.
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

// Status sets the status of the start.
func (s *Starting) Status(text string) { s.Follow(func() string { return text }) }

// Follow makes what, which is called periodically, the source of the status.
func (s *Starting) Follow(what func() string) {
	s.mu.Lock()
	s.what = what
	s.mu.Unlock()
	s.tell()
}

// tell sends the status if it has changed or an extension is due.
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

// Ready stops reporting and tells systemd that the process is ready. It replaces the status
// of the start.
func (s *Starting) Ready(lg *zap.Logger) {
	s.End()
	notifyReady(lg)
	if s.send != nil {
		s.send("STATUS=serving")
	}
}

// End stops reporting. It may be called more than once.
func (s *Starting) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		close(s.done)
	}
}
