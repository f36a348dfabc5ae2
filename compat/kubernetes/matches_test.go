package kubernetes

import (
	"testing"

	"k8s.io/apimachinery/pkg/watch"
)

// The checker of watches finds what is missing, duplicated, reordered and invented.
func TestMatches(t *testing.T) {
	t.Parallel()
	a, m, d := change{is: watch.Added, number: "1"}, change{is: watch.Modified, number: "2"}, change{is: watch.Deleted, number: "2"}
	n := change{is: watch.Added, number: "4"}
	maybe := change{is: watch.Modified, number: "3", unsure: true}
	for name, c := range map[string]struct {
		written, seen []change
		ok            bool
	}{
		"all":                    {[]change{a, m, d}, []change{a, m, d}, true},
		"unsure, came":           {[]change{a, maybe, d}, []change{a, maybe, d}, true},
		"unsure, did not":        {[]change{a, maybe, m}, []change{a, m}, true},
		"unsure, done again":     {[]change{a, m, {is: watch.Deleted, number: "2", unsure: true}, d, n}, []change{a, m, d, n}, true},
		"missing":                {[]change{a, m, d}, []change{a, d}, false},
		"missing at end":         {[]change{a, m}, []change{a}, false},
		"twice":                  {[]change{a, m}, []change{a, m, m}, false},
		"unsure, twice":          {[]change{a, maybe}, []change{a, maybe, maybe}, false},
		"order":                  {[]change{a, m, d}, []change{m, a, d}, false},
		"invented":               {[]change{a}, []change{a, m}, false},
		"list, state skipped":    {[]change{a, m, d, n}, []change{a, {is: relisted, number: "4"}}, true},
		"list, nothing skipped":  {[]change{a, m}, []change{a, {is: relisted, number: "1"}, m}, true},
		"list, gone between":     {[]change{a, d, n}, []change{a, {is: relisted}, n}, true},
		"list, never so":         {[]change{a, m}, []change{a, {is: relisted, number: "9"}, m}, false},
		"list, then missing":     {[]change{a, m, d, n}, []change{a, {is: relisted, number: "2"}, n}, false},
		"list, behind what came": {[]change{a, m}, []change{a, m, {is: relisted, number: "1"}}, false},
		"another revision":       {[]change{{is: watch.Added, number: "1", revision: "7"}}, []change{{is: watch.Added, number: "1", revision: "8"}}, false},
	} {
		if err := matches("", c.written, c.seen); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
