package suggest

import "testing"

func TestNearest(t *testing.T) {
	names := []string{"grant", "revoke", "list", "keep-alive", "timetolive"}
	for word, want := range map[string]string{
		"grent": "grant", "gratn": "grant", "lst": "list", "keepalive": "keep-alive", "timetoliv": "timetolive",
		"revoke": "revoke", "rev": "revoke", "frobnicate": "", "": "", "x": "",
	} {
		if got := Nearest(word, names); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}
