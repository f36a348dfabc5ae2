package listen

import (
	"strings"
	"testing"
	"time"
)

// A start that takes long asks for more time again and again, and says what it does; after its end
// it says nothing.
func TestStartingExtends(t *testing.T) {
	said := make(chan string, 100)
	s := beginStart(func(state string) { said <- state }, time.Millisecond)
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
	s.tell(true)
	if len(said) > 0 {
		t.Errorf("after the end: %q", <-said)
	}
}
