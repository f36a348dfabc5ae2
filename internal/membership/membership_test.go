package membership

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/ids"
)

// fakeEngine is a Reader and a Batch over a map.
type fakeEngine map[string]string

func (f fakeEngine) Set(k, v []byte) { f[string(k)] = string(v) }
func (f fakeEngine) Delete(k []byte) { delete(f, string(k)) }
func (f fakeEngine) DeleteRange(lo, hi []byte) {
	for k := range f {
		if k >= string(lo) && k < string(hi) {
			delete(f, k)
		}
	}
}
func (f fakeEngine) Len() int      { return 0 }
func (f fakeEngine) Commit() error { return nil }
func (f fakeEngine) Discard()      {}
func (f fakeEngine) Get(dst, k []byte) ([]byte, error) {
	v, ok := f[string(k)]
	if !ok {
		return nil, engine.ErrNotFound
	}
	return append(dst, v...), nil
}
func (f fakeEngine) NewIter(lo, hi []byte) (engine.Iterator, error) {
	it := &fakeIter{f: f, i: -1}
	for k := range f {
		if k >= string(lo) && k < string(hi) {
			it.keys = append(it.keys, k)
		}
	}
	slices.Sort(it.keys)
	return it, nil
}

type fakeIter struct {
	f    fakeEngine
	keys []string
	i    int
}

func (it *fakeIter) First() bool { it.i = 0; return it.Valid() }
func (it *fakeIter) Last() bool  { it.i = len(it.keys) - 1; return it.Valid() }
func (it *fakeIter) SeekGE(k []byte) bool {
	it.i, _ = slices.BinarySearch(it.keys, string(k))
	return it.Valid()
}
func (it *fakeIter) Next() bool             { it.i++; return it.Valid() }
func (it *fakeIter) Prev() bool             { it.i--; return it.Valid() }
func (it *fakeIter) Valid() bool            { return it.i >= 0 && it.i < len(it.keys) }
func (it *fakeIter) Key() []byte            { return []byte(it.keys[it.i]) }
func (it *fakeIter) Value() ([]byte, error) { return []byte(it.f[it.keys[it.i]]), nil }
func (it *fakeIter) Error() error           { return nil }
func (it *fakeIter) Close() error           { return nil }

// dump returns the stored records, one per line, sorted.
func (f fakeEngine) dump() string {
	var lines []string
	for k, v := range f {
		lines = append(lines, fmt.Sprintf("%v/%s = %s", engine.Bucket(k[0]), k[1:], v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// The ids are those of etcd's documentation: the default single member and the
// local cluster of three.
func TestIDs(t *testing.T) {
	now := time.Unix(1700000000, 999)
	for _, c := range []struct {
		urls  []string
		token string
		now   *time.Time
		want  string
	}{
		{[]string{"http://localhost:2380"}, "etcd-cluster", nil, "8e9e05c52164694d"},
		{[]string{"http://127.0.0.1:12380"}, "etcd-cluster-1", nil, "8211f1d0f64f3269"},
		{[]string{"http://127.0.0.1:22380"}, "etcd-cluster-1", nil, "91bc3c398fb3c146"},
		{[]string{"http://127.0.0.1:32380"}, "etcd-cluster-1", nil, "fd422379fda50e48"},
	} {
		if got := ComputeMemberID(c.urls, c.token, c.now).String(); got != c.want {
			t.Errorf("id of %v %q = %s, want %s", c.urls, c.token, got, c.want)
		}
	}
	a := ComputeMemberID([]string{"http://a:1", "http://b:1"}, "", &now)
	b := ComputeMemberID([]string{"http://b:1", "http://a:1"}, "1700000000", nil)
	if a != b {
		t.Errorf("time and order: %s and %s differ", a, b)
	}
	id := ComputeClusterID([]ids.Member{0xfd422379fda50e48, 0x8211f1d0f64f3269, 0x91bc3c398fb3c146})
	if got, want := id.String(), "ef37ad9dc622a7c4"; got != want {
		t.Errorf("cluster id = %s, want %s", got, want)
	}
}

func TestParseInitialCluster(t *testing.T) {
	for _, c := range []struct{ in, want, err string }{
		{"", "", ""},
		{"b=http://b:1,a=http://a:2,a=http://a:1", "a=http://a:1,a=http://a:2,b=http://b:1", ""},
		{",a=http://a:1,", "a=http://a:1", ""},
		{"a", "", `URL scheme must be http, https, unix, or unixs: `},
		{"a=http://a", "", `URL address does not have the form "host:port": http://a`},
		{"a=http://a:1/x", "", "URL must not contain a path: http://a:1/x"},
		{"a=ftp://a:1", "", "URL scheme must be http, https, unix, or unixs: ftp://a:1"},
	} {
		ms, err := ParseInitialCluster(c.in)
		if got := fmt.Sprint(err); (err != nil || c.err != "") && got != c.err {
			t.Errorf("%q: error %q, want %q", c.in, got, c.err)
		}
		if got := FormatInitialCluster(ms); got != c.want {
			t.Errorf("%q = %q, want %q", c.in, got, c.want)
		}
	}
}

func TestCheckInitial(t *testing.T) {
	same := func(a, b []string) (bool, error) {
		if slices.Equal(a, b) {
			return true, nil
		}
		return false, errors.New("no such host")
	}
	for _, c := range []struct {
		cluster, name string
		adv           []string
		want          string
	}{
		{"a=http://a:1,b=http://b:1", "a", []string{"http://a:1"}, "<nil> <nil>"},
		{"a=http://a:1", "c", []string{"http://a:1"}, `couldn't find local name "c" in the initial cluster configuration`},
		{"a=http://a:1,b=http://a:1", "a", []string{"http://a:1"}, "initial cluster a=http://a:1,b=http://a:1 has duplicate url"},
		{"a=http://a:1,a=http://a:2", "a", []string{"http://a:1"},
			"<nil> --initial-cluster has a=http://a:2 but missing from --initial-advertise-peer-urls=http://a:1 (no such host)"},
		{"a=http://a:1", "a", []string{"http://a:2", "http://a:1"},
			"<nil> --initial-advertise-peer-urls has http://a:2 but missing from --initial-cluster=a=http://a:1,a=http://a:2"},
	} {
		ms := must(ParseInitialCluster(c.cluster))
		err := CheckInitial(ms, c.name)
		got := fmt.Sprint(err)
		if err == nil {
			got += " " + fmt.Sprint(CheckAdvertised(ms, c.name, c.adv, same))
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.cluster, got, c.want)
		}
	}
}

func TestBootstrapEntries(t *testing.T) {
	initial := must(ParseInitialCluster("infra1=http://127.0.0.1:12380,infra2=http://127.0.0.1:22380,infra3=http://127.0.0.1:32380"))
	ms, cid, err := Founders(initial, "etcd-cluster-1")
	if err != nil || cid.String() != "ef37ad9dc622a7c4" {
		t.Fatalf("cluster %s, %v", cid, err)
	}
	ents, err := BootstrapEntries(ms)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"infra1", "infra2", "infra3"} {
		e := ents[i]
		if e.GetIndex() != uint64(i+1) || e.GetTerm() != 1 || e.GetType() != raftpb.EntryConfChange {
			t.Errorf("entry %d is %v", i, e)
		}
		ctx := fmt.Sprintf(`{"id":%d,"peerURLs":["http://127.0.0.1:%d2380"],"name":"%s"}`, ms[i].ID, i+1, name)
		// Type is encoded although it is 0, the request id is not.
		want := []byte{0x10, 0x00, 0x18}
		want = appendVarint(want, uint64(ms[i].ID))
		want = append(want, 0x22, byte(len(ctx)))
		want = append(want, ctx...)
		if !bytes.Equal(e.GetData(), want) {
			t.Errorf("entry %d data\n%s\nwant\n%s", i, hex.Dump(e.GetData()), hex.Dump(want))
		}
	}
	initial[1].PeerURLs = initial[0].PeerURLs
	if _, _, err := Founders(initial, "t"); err == nil {
		t.Error("two founders with one id were accepted")
	}
}

func appendVarint(b []byte, v uint64) []byte {
	for ; v >= 0x80; v >>= 7 {
		b = append(b, byte(v)|0x80)
	}
	return append(b, byte(v))
}

// Applies changes one by one and checks each result, and finally all stored records.
func TestApply(t *testing.T) {
	eng := fakeEngine{}
	c := New(Options{LocalID: 1, ClusterID: 9, ServerVersion: Version{3, 7, 3, ""}})
	change := func(cc *raftpb.ConfChange, err error) *raftpb.ConfChange {
		if err != nil {
			t.Fatal(err)
		}
		return cc
	}
	m := func(id ids.Member, learner bool, urls ...string) Member {
		return Member{ID: id, PeerURLs: urls, IsLearner: learner}
	}
	bad := func(typ raftpb.ConfChangeType, id uint64, ctx string) *raftpb.ConfChange {
		return &raftpb.ConfChange{Type: typ.Enum(), NodeId: new(id), Context: []byte(ctx)}
	}
	for i, s := range []struct {
		cc   *raftpb.ConfChange
		want error
		act  Action
	}{
		{change(AddChange(m(1, false, "http://a:1"))), nil, Added},
		{change(AddChange(m(2, false, "http://b:1"))), nil, Added},
		{change(AddChange(m(2, false, "http://x:1"))), ErrIDExists, 0},
		{change(AddChange(m(3, false, "http://b:1"))), ErrPeerURLExists, 0},
		{change(AddChange(m(0x1f, true, "http://c:1"))), nil, Added},
		{change(AddChange(m(4, true, "http://d:1"))), ErrTooManyLearners, 0},
		{change(PromoteChange(2)), ErrMemberNotLearner, 0},
		{change(PromoteChange(77)), ErrIDNotFound, 0},
		{change(PromoteChange(0x1f)), nil, Promoted},
		{change(AddChange(m(5, true, "http://e:1"))), nil, Added},
		{change(UpdateChange(2, []string{"http://a:1"})), ErrPeerURLExists, 0},
		{change(UpdateChange(2, []string{"http://b:1", "http://b:2"})), nil, Updated},
		{change(UpdateChange(78, []string{"http://z:2"})), ErrIDNotFound, 0},
		{RemoveChange(79), ErrIDNotFound, 0},
		{RemoveChange(5), nil, Removed},
		{RemoveChange(5), ErrIDRemoved, 0},
		{change(AddChange(m(5, false, "http://e:1"))), ErrIDRemoved, 0},
		{bad(raftpb.ConfChangeAddNode, 6, "{"), ErrMalformedChange, 0},
		{bad(raftpb.ConfChangeAddNode, 6, `{"id":7,"peerURLs":["http://g:1"]}`), ErrMalformedChange, 0},
		{bad(raftpb.ConfChangeUpdateNode, 2, ``), ErrMalformedChange, 0},
		{bad(raftpb.ConfChangeType(9), 2, `{}`), ErrMalformedChange, 0},
		{&raftpb.ConfChange{}, ErrMalformedChange, 0},
	} {
		before := eng.dump()
		if err := c.Validate(s.cc); !errors.Is(err, s.want) {
			t.Errorf("step %d: validate %v, want %v", i, err, s.want)
		}
		eff, err := c.Apply(eng, s.cc)
		if !errors.Is(err, s.want) || eff.Action != s.act {
			t.Errorf("step %d: %v %v, want %v %v", i, eff.Action, err, s.act, s.want)
		}
		if err != nil && eng.dump() != before {
			t.Errorf("step %d: a refused change was stored", i)
		}
	}
	if err := c.SetAttributes(eng, 2, "b", []string{"http://b:9"}); err != nil {
		t.Error(err)
	}
	if err := c.SetAttributes(eng, 5, "gone", nil); err != nil {
		t.Errorf("attributes of a removed member: %v", err)
	}
	if err := c.SetAttributes(eng, 99, "x", nil); !errors.Is(err, ErrIDNotFound) {
		t.Errorf("attributes of a stranger: %v", err)
	}
	if err := c.SetVersion(eng, Version{3, 7, 0, ""}); err != nil {
		t.Error(err)
	}
	var low *VersionTooLowError
	if err := c.SetVersion(eng, Version{3, 8, 0, ""}); !errors.As(err, &low) {
		t.Errorf("newer cluster version: %v", err)
	}
	if err := c.SetDowngrade(eng, Downgrade{Target: "3.6.0", Enabled: true}); err != nil {
		t.Error(err)
	}
	want := strings.TrimSpace(`
cluster/clusterVersion = 3.7.0
cluster/downgrade = {"target-version":"3.6.0","enabled":true}
members/1 = {"id":1,"peerURLs":["http://a:1"]}
members/1f = {"id":31,"peerURLs":["http://c:1"]}
members/2 = {"id":2,"peerURLs":["http://b:1","http://b:2"],"name":"b","clientURLs":["http://b:9"]}
members_removed/5 = removed`)
	if got := eng.dump(); got != want {
		t.Errorf("stored\n%s\nwant\n%s", got, want)
	}

	// Loading returns the applied state.
	l := New(Options{LocalID: 1, ClusterID: 9, ServerVersion: Version{3, 7, 3, ""}})
	if err := l.Load(eng); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(l.st.Load(), c.st.Load()) {
		t.Errorf("loaded %+v, want %+v", l.st.Load(), c.st.Load())
	}
	js := string(must(l.JSON()))
	if want := `[{"id":1,"peerURLs":["http://a:1"]},{"id":2,"peerURLs":["http://b:1","http://b:2"],"name":"b","clientURLs":["http://b:9"]},{"id":31,"peerURLs":["http://c:1"]}]`; js != want {
		t.Errorf("json %s want %s", js, want)
	}
	if got := must(DecodeMembers([]byte(js))); !reflect.DeepEqual(got, l.Members()) {
		t.Errorf("decoded %v", got)
	}
	old := New(Options{ServerVersion: Version{3, 6, 0, ""}})
	if err := old.Load(eng); !errors.As(err, &low) {
		t.Errorf("older server loads: %v", err)
	}
	eng.Set(engine.Members.K([]byte("3")), []byte("{"))
	var corrupt *engine.CorruptionError
	if err := l.Load(eng); !errors.As(err, &corrupt) || len(l.Members()) != 3 {
		t.Errorf("corrupt member: %v, %d members", err, len(l.Members()))
	}
	if err := l.Reset(eng, []Member{m(7, false, "http://h:1")}); err != nil {
		t.Fatal(err)
	}
	if got, want := eng.dump(), `members/7 = {"id":7,"peerURLs":["http://h:1"]}`; got != want {
		t.Errorf("after reset %s, want %s", got, want)
	}
	if l.IsRemoved(5) || !c.IsRemoved(5) || !slices.Equal(c.RemovedIDs(), []ids.Member{5}) {
		t.Error("removed ids")
	}
	if got := c.VoterIDs(); !slices.Equal(got, []ids.Member{1, 2, 31}) {
		t.Errorf("voters %v", got)
	}
}

func TestChangeContexts(t *testing.T) {
	for _, c := range []struct {
		cc   *raftpb.ConfChange
		want string
	}{
		{must(AddChange(Member{ID: 5, Name: "dropped", PeerURLs: []string{"http://a:1"}})), `AddNode {"id":5,"peerURLs":["http://a:1"]}`},
		{must(AddChange(Member{ID: 5, PeerURLs: []string{"http://a:1"}, IsLearner: true})), `AddLearnerNode {"id":5,"peerURLs":["http://a:1"],"isLearner":true}`},
		{must(PromoteChange(5)), `AddNode {"id":5,"peerURLs":null,"isPromote":true}`},
		{must(UpdateChange(5, []string{"http://a:2"})), `UpdateNode {"id":5,"peerURLs":["http://a:2"]}`},
		{RemoveChange(5), `RemoveNode `},
	} {
		got := strings.TrimPrefix(c.cc.GetType().String(), "ConfChange") + " " + string(c.cc.GetContext())
		if got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

func TestMatchExisting(t *testing.T) {
	alias := map[string]string{"http://one:1": "http://10.0.0.1:1"}
	same := func(a, b []string) (bool, error) {
		for i := range a {
			if x := cmpAlias(alias, a[i]); len(b) != len(a) || x != cmpAlias(alias, b[i]) {
				return false, errors.New("differ")
			}
		}
		return true, nil
	}
	initial := must(ParseInitialCluster("n1=http://one:1,n2=http://two:1"))
	existing := []Member{{ID: 7, PeerURLs: []string{"http://two:1"}}, {ID: 3, PeerURLs: []string{"http://10.0.0.1:1"}, Name: "n1"}}
	got, err := MatchExisting(initial, existing, same)
	want := []Member{{ID: 3, Name: "n1", PeerURLs: []string{"http://one:1"}}, {ID: 7, Name: "n2", PeerURLs: []string{"http://two:1"}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %v, want %v", got, err, want)
	}
	if _, err := MatchExisting(initial, existing[:1], same); err == nil || err.Error() != "member count is unequal" {
		t.Errorf("count: %v", err)
	}
	existing[0].PeerURLs = []string{"http://other:1"}
	if _, err := MatchExisting(initial, existing, same); err == nil || !strings.HasPrefix(err.Error(), "PeerURLs: no match found for existing member (7, ") {
		t.Errorf("stranger: %v", err)
	}
}

func cmpAlias(m map[string]string, k string) string {
	if v, ok := m[k]; ok {
		return v
	}
	return k
}

// Each row: names of voters ("" = not started), which are connected, the
// verdicts on adding a voter, a learner, removing voter 1, promoting.
func TestReconfigurationChecks(t *testing.T) {
	verdict := func(err error) string {
		switch {
		case err == nil:
			return "ok"
		case errors.Is(err, ErrNotEnoughStarted):
			return "started"
		case errors.Is(err, ErrUnhealthy):
			return "unhealthy"
		}
		return err.Error()
	}
	for _, c := range []struct{ started, connected, want string }{
		{"1", "1", "voter ok learner ok remove started promote ok"},
		{"0", "1", "voter started learner ok remove started promote started"},
		{"11", "11", "voter ok learner ok remove ok promote ok"},
		{"11", "10", "voter unhealthy learner unhealthy remove unhealthy promote ok"},
		{"10", "11", "voter started learner ok remove started promote ok"},
		{"111", "111", "voter ok learner ok remove ok promote ok"},
		{"111", "110", "voter unhealthy learner unhealthy remove unhealthy promote ok"},
		{"110", "111", "voter started learner ok remove started promote ok"},
		{"11111", "11100", "voter unhealthy learner unhealthy remove unhealthy promote ok"},
		{"11111", "11110", "voter ok learner ok remove ok promote ok"},
	} {
		var ms []Member
		for i, s := range c.started {
			m := Member{ID: ids.Member(i + 1)}
			if s == '1' {
				m.Name = "x"
			}
			ms = append(ms, m)
		}
		ms = append(ms, Member{ID: 100, IsLearner: true})
		up := func(id ids.Member) bool { return id <= ids.Member(len(c.connected)) && c.connected[id-1] == '1' }
		got := fmt.Sprintf("voter %s learner %s remove %s promote %s", verdict(CheckAdd(ms, false, up)),
			verdict(CheckAdd(ms, true, up)), verdict(CheckRemove(ms, 1, up, false)), verdict(CheckPromote(ms)))
		if got != c.want {
			t.Errorf("started %s connected %s:\n%s\nwant\n%s", c.started, c.connected, got, c.want)
		}
		if err := CheckRemove(ms, 100, up, false); err != nil {
			t.Errorf("removing a learner: %v", err)
		}
	}
	three := []Member{{ID: 1, Name: "a"}, {ID: 2, Name: "b"}, {ID: 3, Name: "c"}}
	one := func(id ids.Member) bool { return id == 1 }
	if err := CheckRemove(three, 3, one, true); err != nil {
		t.Errorf("removing a member that is down: %v", err)
	}
	if LearnerInSync(100, 89) || !LearnerInSync(100, 90) || !LearnerInSync(0, 0) {
		t.Error("learner in sync")
	}
}

func TestNextClusterVersion(t *testing.T) {
	for _, c := range []struct {
		cur     string
		servers string
		target  string
		want    string
	}{
		{"", "3.7.3 3.7.0", "", "3.7.0"},
		{"", "3.7.3 3.6.9", "", "3.6.0"},
		{"", "3.7.3 ?", "", "3.0.0"},
		{"3.0.0", "3.7.3 3.6.9", "", "3.6.0"},
		{"3.6.0", "3.7.3 3.7.1", "", "3.7.0"},
		{"3.7.0", "3.7.3 3.7.1", "", "-"},
		{"3.7.0", "3.7.3 3.6.1", "", "-"},
		{"3.6.0", "3.7.3 ?", "", "-"},
		{"3.6.0", "4.0.0", "", "-"},
		{"3.7.0", "3.7.3 3.7.1", "3.6.0", "3.6.0"},
		{"3.6.0", "3.7.3 3.6.1", "3.6.0", "-"},
		{"3.7.0", "3.7.3", "3.5.0", "error"},
		{"3.7.0", "3.6.3", "3.6.0", "error"},
		{"3.7.0", "3.7.3", "x", "error"},
	} {
		var cur Version
		if c.cur != "" {
			cur = must(ParseVersion(c.cur))
		}
		d := Downgrade{Target: c.target, Enabled: c.target != ""}
		next, change, err := NextClusterVersion(cur, MinServerVersion(strings.Fields(c.servers)), d)
		got := "-"
		if err != nil {
			got = "error"
		} else if change {
			got = next.String()
		}
		if got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestCheckJoin(t *testing.T) {
	own := Version{3, 7, 3, ""}
	for _, c := range []struct {
		vers string
		down bool
		ok   bool
	}{
		{"3.7.0 3.6.0 not_decided", false, true},
		{"not_decided", false, false},
		{"", false, false},
		{"3.8.0 3.7.0", false, false},
		{"2.3.0", false, false},
		{"3.8.0", true, true},
		{"3.7.0", true, false},
	} {
		if err := CheckJoin(strings.Fields(c.vers), own, c.down); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestVersionOrder(t *testing.T) {
	list := strings.Fields("2.9.9 3.0.0-alpha 3.0.0-alpha.1 3.0.0-alpha.2 3.0.0-alpha.10 3.0.0-beta 3.0.0-rc.1 3.0.0 3.0.1 3.1.0 10.0.0")
	for i := range list {
		for j := range list {
			a, b := must(ParseVersion(list[i])), must(ParseVersion(list[j]))
			if a.Less(b) != (i < j) || a.String() != list[i] {
				t.Errorf("%v < %v is %v", a, b, a.Less(b))
			}
		}
	}
	for _, s := range []string{"", "3", "3.7", "3.7.x", "3.7.0.1", "-1.0.0", "99999999999999999999.0.0"} {
		if v, err := ParseVersion(s); err == nil {
			t.Errorf("%q parsed as %v", s, v)
		}
	}
}

func TestConfState(t *testing.T) {
	eng := fakeEngine{}
	if cs, err := LoadConfState(eng); cs != nil || err != nil {
		t.Errorf("missing: %v %v", cs, err)
	}
	cs := &raftpb.ConfState{Voters: []uint64{1, 1<<64 - 1}, Learners: []uint64{3}}
	if err := PutConfState(eng, cs); err != nil {
		t.Fatal(err)
	}
	if got, want := eng.dump(), `meta/confState = {"voters":[1,18446744073709551615],"learners":[3]}`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	got, err := LoadConfState(eng)
	if err != nil || !proto.Equal(got, cs) {
		t.Errorf("%v %v", got, err)
	}
	older, err := DecodeConfState([]byte(`{"voters":[2],"auto_leave":false}`))
	if err != nil || !slices.Equal(older.GetVoters(), []uint64{2}) || older.GetAutoLeave() {
		t.Errorf("3.5 form: %v %v", older, err)
	}
}

func FuzzChange(f *testing.F) {
	f.Add(int32(0), uint64(1), []byte(`{"id":1,"peerURLs":["http://a:1"]}`))
	f.Add(int32(3), uint64(2), []byte(`{"id":2,"peerURLs":null,"isLearner":true}`))
	f.Add(int32(2), uint64(1), []byte(`{"id":1}`))
	f.Add(int32(1), uint64(1), []byte(nil))
	f.Fuzz(func(t *testing.T, typ int32, id uint64, ctx []byte) {
		eng := fakeEngine{}
		c := New(Options{LocalID: 1})
		if err := c.Reset(eng, []Member{{ID: 1, PeerURLs: []string{"http://x:1"}}, {ID: 2, IsLearner: true}}); err != nil {
			t.Fatal(err)
		}
		cc := &raftpb.ConfChange{Type: raftpb.ConfChangeType(typ).Enum(), NodeId: &id, Context: ctx}
		verr := c.Validate(cc)
		if _, err := c.Apply(eng, cc); (err == nil) != (verr == nil) {
			t.Fatalf("validate %v, apply %v", verr, err)
		}
		l := New(Options{LocalID: 1})
		if err := l.Load(eng); err != nil {
			t.Fatalf("stored what cannot be loaded: %v", err)
		}
		if a, b := must(json.Marshal(l.Members())), must(json.Marshal(c.Members())); !bytes.Equal(a, b) {
			t.Fatalf("loaded %s, applied %s", a, b)
		}
	})
}

func FuzzLoad(f *testing.F) {
	f.Add("1", []byte(`{"id":1}`), []byte(`3.5.0`), []byte(`{"target-version":"","enabled":false}`))
	f.Fuzz(func(t *testing.T, id string, member, version, downgrade []byte) {
		eng := fakeEngine{}
		eng.Set(engine.Members.K([]byte(id)), member)
		eng.Set(versionKey, version)
		eng.Set(downgradeKey, downgrade)
		eng.Set(confStateKey, downgrade)
		_ = New(Options{}).Load(eng)
		_, _ = LoadConfState(eng)
		_, _ = DecodeMembers(member)
	})
}

// The last voter cannot be removed, even if learners would be left.
func TestLastVoterStays(t *testing.T) {
	c := New(Options{LocalID: 1, ClusterID: 9, ServerVersion: Version{3, 7, 3, ""}})
	b := fakeEngine{}
	for _, m := range []Member{{ID: 1, PeerURLs: []string{"http://a:1"}}, {ID: 2, PeerURLs: []string{"http://b:1"}}, {ID: 3, PeerURLs: []string{"http://c:1"}, IsLearner: true}} {
		cc, err := AddChange(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Apply(b, cc); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Apply(b, RemoveChange(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Apply(b, RemoveChange(2)); !errors.Is(err, ErrLastVoter) || len(c.VoterIDs()) != 1 {
		t.Errorf("%v, voters %v", err, c.VoterIDs())
	}
	if _, err := c.Apply(b, RemoveChange(3)); err != nil {
		t.Errorf("a learner beside the last voter: %v", err)
	}
}
