package moving

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"quorate/compat/child"
	"quorate/compat/harness"
)

// v2 sends a request of the v2 API until the member can accept it.
func v2(t testing.TB, m *harness.Member, method, path string, form url.Values) (a child.V2Answer) {
	t.Helper()
	child.Eventually(t, limit, method+" "+path, func() (err error) {
		if a, err = child.V2(limit, method, m.ClientAddr(), path, form); err == nil && a.Status >= 500 {
			err = errors.New(a.Body)
		}
		return err
	})
	return a
}

func value(v string, more ...string) url.Values {
	form := url.Values{"value": {v}}
	for i := 0; i < len(more); i += 2 {
		form.Set(more[i], more[i+1])
	}
	return form
}

// passing matches what changes with time alone: the remaining TTL.
var passing = regexp.MustCompile(`,"ttl":-?\d+`)

// v2Tree is everything in the tree, and the events of its history from a client's first one on.
func v2Tree(t testing.TB, m *harness.Member, first, last uint64) (tree string, history []string) {
	t.Helper()
	tree = passing.ReplaceAllString(v2(t, m, "GET", "/?recursive=true&sorted=true&quorum=true", nil).Body, "")
	for i := first; i <= last; i++ {
		e := v2(t, m, "GET", fmt.Sprintf("/?wait=true&recursive=true&waitIndex=%d", i), nil)
		history = append(history, passing.ReplaceAllString(e.Body, ""))
	}
	return tree, history
}

// The data of the v2 API comes with a directory of etcd 3.5, from what it had in memory: the newest .snap file
// and the log after it, or the log alone. Etcd 3.7 gets the directory back only without it.
func TestV2(t *testing.T) {
	for _, c := range []struct {
		kill bool
		args []string
	}{{false, nil}, {true, []string{"--snapshot-count=5"}}} {
		t.Run(fmt.Sprintf("kill=%v", c.kill), func(t *testing.T) {
			t.Parallel()
			m := start(t, real35, append([]string{"--enable-v2"}, c.args...)...)
			first := v2(t, m, "PUT", "/first", value("1")).Index
			for i := range 12 {
				v2(t, m, "PUT", fmt.Sprintf("/dir/%d", i), value(fmt.Sprint(i)))
			}
			v2(t, m, "POST", "/queue", value("x"))
			v2(t, m, "PUT", "/dir/3", value("swapped", "prevValue", "3"))
			v2(t, m, "PUT", "/dir/4", value("refused", "prevValue", "3"))
			v2(t, m, "DELETE", "/dir/5", nil)
			v2(t, m, "PUT", "/lasting", value("x", "ttl", "1000"))
			v2(t, m, "PUT", "/_hidden", value("x"))
			brief := v2(t, m, "PUT", "/brief/key", value("x", "ttl", "8"))
			tree, history := v2Tree(t, m, first, brief.Index)
			end(t, m, c.kill)

			become(t, m, etcd)
			now, past := v2Tree(t, m, first, brief.Index)
			if gone := v2(t, m, "GET", "/brief/key", nil).Status == 404; now != tree && !gone {
				t.Errorf("the tree is\n%s\nit was\n%s", now, tree)
			}
			for i := range history {
				if past[i] != history[i] {
					t.Errorf("event %d is\n%s\nit was\n%s", first+uint64(i), past[i], history[i])
				}
			}
			if v := v2(t, m, "GET", "/_hidden", nil); v.Status != 200 {
				t.Errorf("a hidden key: %+v", v)
			}
			before := v2(t, m, "GET", "/", nil).Index
			set := v2(t, m, "PUT", "/first", value("2"))
			if before <= brief.Index || set.Index <= before || !strings.Contains(set.Body, fmt.Sprintf(`"prevNode":{"key":"/first","value":"1","modifiedIndex":%d,"createdIndex":%d}`, first, first)) {
				t.Errorf("a write at %d, after %d and %d: %s", set.Index, brief.Index, before, set.Body)
			}
			child.Eventually(t, limit, "the key expires", func() error {
				if a := v2(t, m, "GET", "/brief/key", nil); a.Status != 404 {
					return errors.New(a.Body)
				}
				return nil
			})
			end(t, m, c.kill)
			become(t, m, etcd) // from records of ours
			if v := v2(t, m, "GET", "/first", nil); !strings.Contains(v.Body, `"value":"2"`) {
				t.Errorf("after a restart: %+v", v)
			}
			end(t, m, false)
			r := tool(t, etcdutl, "migrate", "--to-etcd", "--data-dir", m.DataDir())
			if r.code == 0 || !strings.Contains(r.stderr+r.stdout, "--drop-v2") {
				t.Errorf("migrate with data of the v2 API: code %d, %s%s", r.code, r.stdout, r.stderr)
			}
			back(t, m, "--drop-v2")
			m.SetArgs()
			become(t, m, real37)
		})
	}
}
