package observe

import (
	"strings"
	"testing"
)

func TestParseExposition(t *testing.T) {
	const text = `# HELP h_seconds Time.
# TYPE h_seconds histogram
h_seconds_bucket{To="ab",le="0.1"} 1
h_seconds_bucket{To="ab",le="+Inf"} 3
h_seconds_sum{To="ab"} 0.5
h_seconds_count{To="ab"} 3
h_seconds_count{To="cd"} 4
# TYPE c counter
c{a="x\"y,}",b=""} 1e+06
# TYPE g gauge
g -1
`
	got, err := parseExposition(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]float64{
		`h_seconds_count{To="*"}`: 7, `c{a="x\"y,}",b=""}`: 1e6, "g": -1,
	} {
		if v, ok := got.values()[key]; !ok || v != want {
			t.Errorf("%s: got %v (%v), want %v", key, v, ok, want)
		}
	}
	if n := len(got.values()); n != 3 {
		t.Errorf("got %d series, want 3: %v", n, got.values())
	}
	if g, w := strings.Join(got["h_seconds"].bounds(), " "), "+Inf 0.1"; g != w {
		t.Errorf("got bounds %s, want %s", g, w)
	}
	if g, w := strings.Join(got["h_seconds"].labelNames(), " "), "To le"; g != w {
		t.Errorf("got labels %s, want %s", g, w)
	}
	for _, bad := range []string{"x 1\n", "# TYPE x gauge\ny 1\n", "# TYPE x gauge\nx{a=b} 1\n", "# TYPE x gauge\nx one\n", "# TYPE x gauge\nx\n"} {
		if _, err := parseExposition(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: got no error", bad)
		}
	}
}

func TestExcepted(t *testing.T) {
	table := map[string]string{"a": "whole", "*b": "part", `*x="1"*`: "part"}
	for key, want := range map[string]bool{"a": true, "aa": false, "cbc": true, `s{x="1"}`: true, `s{x="2"}`: false} {
		if got := excepted(table, key); got != want {
			t.Errorf("%s: got %v, want %v", key, got, want)
		}
	}
}
