package mixed

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"quorate/compat/child"
)

// v2 sends a request of the v2 API to a member until it can accept it.
func (m *member) v2(t *testing.T, method, path string, form url.Values) (a child.V2Answer) {
	t.Helper()
	child.Eventually(t, limit, fmt.Sprintf("%s answers %s %s", m, method, path), func() (err error) {
		if a, err = child.V2(limit, method, m.cfg.ClientAddr, path, form); err == nil && a.Status >= 500 {
			err = errors.New(a.Body)
		}
		return err
	})
	return a
}

// passing matches what changes with time alone: the remaining TTL.
var passing = regexp.MustCompile(`,"ttl":-?\d+`)

// sameV2 compares trees and indexes of all members, and the events of some indexes.
func (g *group) sameV2(events ...uint64) {
	g.t.Helper()
	child.Eventually(g.t, limit, "all have the same tree", func() error {
		var want string
		for i, m := range g.members {
			a := m.v2(g.t, "GET", "/?recursive=true&sorted=true&quorum=true", nil)
			got := fmt.Sprintf("%d %s", a.Index, passing.ReplaceAllString(a.Body, ""))
			if i == 0 {
				want = got
			} else if got != want {
				return fmt.Errorf("%s has %.1000s, %s has %.1000s", m, got, g.members[0], want)
			}
		}
		return nil
	})
	for _, e := range events {
		want := g.members[0].v2(g.t, "GET", fmt.Sprintf("/?wait=true&recursive=true&waitIndex=%d", e), nil)
		for _, m := range g.members[1:] {
			got := m.v2(g.t, "GET", fmt.Sprintf("/?wait=true&recursive=true&waitIndex=%d", e), nil)
			if passing.ReplaceAllString(got.Body, "") != passing.ReplaceAllString(want.Body, "") {
				g.t.Errorf("event %d: %s has %s, %s has %s", e, m, got.Body, g.members[0], want.Body)
			}
		}
	}
}

// The v2 API of members of etcd 3.5 and of ours is one: what is written on either kind is read on the other, at
// the same index, whichever leads; a member that fell behind gets the tree with the other kind's snapshot; and
// keys expire under either kind of leader.
func TestV2(t *testing.T) {
	t.Parallel()
	g := found(t, append([]string{"--enable-v2"}, little...), etcd35, etcd35, ours)
	theirs, mine := g.members[0], g.members[2]
	g.version("3.5.0")
	first := mine.v2(t, "PUT", "/first", url.Values{"value": {"x"}}).Index
	for _, m := range g.members {
		m.v2(t, "PUT", "/from/"+m.name, url.Values{"value": {m.name}})
		for _, o := range g.members {
			if a := o.v2(t, "GET", "/from/"+m.name+"?quorum=true", nil); !strings.Contains(a.Body, `"value":"`+m.name+`"`) {
				t.Errorf("%s reads %s of %s", o, a.Body, m)
			}
		}
	}
	// Both refuse the same requests.
	for path, form := range map[string]url.Values{
		"/first": {"value": {"y"}, "prevValue": {"z"}}, "/from": {"value": {"y"}}, "/first/below": {"value": {"y"}}, "/": {"value": {"y"}},
		"/none": {"value": {"y"}, "prevExist": {"true"}},
	} {
		want, got := theirs.v2(t, "PUT", path, form), mine.v2(t, "PUT", path, form)
		if got != want {
			t.Errorf("PUT %s %v: %+v, etcd has %+v", path, form, got, want)
		}
	}
	dir := url.Values{"dir": {"true"}, "prevExist": {"true"}, "ttl": {"1000"}}
	for _, m := range []*member{theirs, mine} { // 3.5 cannot do it, and all must decide alike
		if a, err := child.V2(limit, "PUT", m.cfg.ClientAddr, "/from", dir); err != nil || a.Status != 500 || !strings.Contains(a.Body, "Not a file") {
			t.Errorf("%s answers an update of a directory with %+v, %v", m, a, err)
		}
	}
	g.sameV2(first, first+1, first+2, first+3)
	for _, c := range []struct{ lead, behind *member }{{mine, theirs}, {g.members[1], mine}} {
		g.makeLead(c.lead)
		brief := c.lead.v2(t, "PUT", "/brief", url.Values{"value": {"x"}, "ttl": {"1"}})
		child.Eventually(t, limit, "the key expires while "+c.lead.name+" leads", func() error {
			if a := c.behind.v2(t, "GET", "/brief?quorum=true", nil); a.Status != 404 {
				return errors.New(a.Body)
			}
			return nil
		})
		g.kill(c.behind)
		c.lead.v2(t, "PUT", "/missed/by/"+c.behind.name, url.Values{"value": {"x"}, "ttl": {"1000"}})
		for i := range 300 {
			c.lead.v2(t, "POST", "/queue", url.Values{"value": {fmt.Sprint(i)}})
		}
		g.restart(c.behind)
		g.ready(c.behind)
		g.sameV2(brief.Index+1, brief.Index+2, brief.Index+100)
		if !strings.Contains(logOf(t, c.behind), snapshotLine(c.behind)) {
			t.Errorf("%s has caught up without a snapshot from %s", c.behind, c.lead)
		}
	}
	for _, m := range g.members { // the snapshot must survive a restart as well
		g.kill(m)
		g.restart(m)
		g.ready(m)
	}
	g.sameV2()
	g.equal()
}

// A member of etcd 3.7 in a cluster that has used the v2 API can replay the log that contains v2 requests, and
// lead; requests of which it keeps nothing are no longer written until it has gone.
func TestV2Beside(t *testing.T) {
	t.Parallel()
	g := found(t, []string{"--enable-v2"}, ours)
	mine := g.members[0]
	mine.v2(t, "PUT", "/kept", url.Values{"value": {"x"}})
	mine.v2(t, "PUT", "/brief", url.Values{"value": {"x"}, "ttl": {"1"}})
	child.Eventually(t, limit, "the key expires", func() error {
		if a := mine.v2(t, "GET", "/brief", nil); a.Status != 404 {
			return errors.New(a.Body)
		}
		return nil
	})
	g.args = nil // which it does not know
	real := g.add(etcd37, false)
	g.equal()
	for _, lead := range []*member{mine, real} {
		g.makeLead(lead)
		child.Eventually(t, limit, "a write is refused while "+lead.name+" leads", func() error {
			a, err := child.V2(limit, "PUT", mine.cfg.ClientAddr, "/refused", url.Values{"value": {"x"}})
			if err == nil && (a.Status != 500 || !strings.Contains(a.Body, "does not store data of the v2 API")) {
				err = fmt.Errorf("status %d: %s", a.Status, a.Body)
			}
			return err
		})
		if a := mine.v2(t, "GET", "/?quorum=true", nil); !strings.Contains(a.Body, `"/kept"`) || strings.Contains(a.Body, `"/refused"`) {
			t.Errorf("while %s leads there is %s", lead, a.Body)
		}
	}
	g.makeLead(mine)
	g.equal()
	g.remove(real)
	mine.v2(t, "PUT", "/late", url.Values{"value": {"x"}})
}
