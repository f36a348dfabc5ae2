package listen

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// A long start requests extensions repeatedly and reports its status; after its end it sends
// nothing.
func TestStartingExtends(t *testing.T) {
	said := make(chan string, 100)
	s := beginStart(func(state string) { said <- state }, time.Millisecond, time.Millisecond)
	if got := <-said; got != "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=starting" {
		t.Fatalf("said %q first", got)
	}
	s.Status("taking over: 1%\n")
	n := 0
	for range 3 {
		if got := <-said; got != "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=taking over: 1% " && !strings.HasSuffix(got, "STATUS=starting") {
			t.Fatalf("said %q", got)
		}
	}
	s.Follow(func() string { n++; return "replaying" })
	for got := range said {
		if strings.HasSuffix(got, "STATUS=replaying") {
			break
		}
	}
	s.End()
	s.End()
	for len(said) > 0 {
		<-said
	}
	s.Status("more")
	s.tell()
	if len(said) > 0 {
		t.Errorf("after the end: %q", <-said)
	}
}

// A text that comes too soon after another is sent a moment later, without another change and
// before the next extension is due. A process that serves sends its status last.
func TestStartingTellsTheLastText(t *testing.T) {
	said := make(chan string, 100)
	s := beginStart(func(state string) { said <- state }, time.Hour, 5*time.Millisecond)
	for i := range 3 * statusBurst {
		s.Status(fmt.Sprint(i))
	}
	for got := range said {
		if strings.HasSuffix(got, fmt.Sprint("STATUS=", 3*statusBurst-1)) {
			break
		}
	}
	s.Ready(zap.NewNop())
	if got := <-said; got != "STATUS=serving" {
		t.Errorf("at the end: %q", got)
	}
}
