package auth

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/engine/mem"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// bench is a store on an in-memory engine.
type bench struct {
	*Store
	t   *testing.T
	eng *mem.Engine
}

func newBench(t *testing.T) *bench {
	b := &bench{NewStore(NewSimpleTokens(0)), t, mem.New()}
	fresh, err := b.Load(b.eng)
	if err != nil || !fresh {
		t.Fatalf("load of an empty store: fresh %v, %v", fresh, err)
	}
	b.do(func(x engine.Batch) error { b.Init(x); return nil }, nil)
	return b
}

// do applies one request, publishes it and compares its error.
func (b *bench) do(f func(engine.Batch) error, want error) {
	b.t.Helper()
	x := b.eng.NewBatch()
	if err := f(x); !errors.Is(err, want) {
		b.t.Errorf("got error %v, want %v", err, want)
	}
	if err := x.Commit(); err != nil {
		b.t.Fatal(err)
	}
	b.Publish()
}

func (b *bench) user(name string, roles ...string) {
	b.t.Helper()
	b.do(func(x engine.Batch) error { return b.UserAdd(x, add(name)) }, nil)
	for _, r := range roles {
		b.do(func(x engine.Batch) error { return b.UserGrantRole(x, name, r) }, nil)
	}
}

func (b *bench) role(name string, perms ...*authpb.Permission) {
	b.t.Helper()
	b.do(func(x engine.Batch) error { return b.RoleAdd(x, name) }, nil)
	for _, p := range perms {
		b.do(func(x engine.Batch) error { return b.RoleGrantPermission(x, name, p) }, nil)
	}
}

func (b *bench) enable() {
	b.t.Helper()
	b.user(Root, Root)
	b.do(b.Enable, nil)
}

func add(name string) *pb.AuthUserAddRequest {
	return &pb.AuthUserAddRequest{Name: name, HashedPassword: base64.StdEncoding.EncodeToString([]byte("hash of " + name))}
}

func (b *bench) stored(bucket engine.Bucket, name string) []byte {
	b.t.Helper()
	v, err := b.eng.Get(nil, bucket.K([]byte(name)))
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		b.t.Fatal(err)
	}
	return v
}

func TestRecordsAreThoseOfEtcd(t *testing.T) {
	b := newBench(t)
	if got := b.stored(engine.Auth, "authRevision"); !bytes.Equal(got, []byte{0, 0, 0, 0, 0, 0, 0, 1}) {
		t.Errorf("first revision: got %x", got)
	}
	b.role("r", grant(authpb.Permission_READ, "k", ""), grant(authpb.Permission_READWRITE, "a", "\x00"))
	b.user("u", "r")
	b.do(func(x engine.Batch) error {
		return b.UserAdd(x, &pb.AuthUserAddRequest{Name: "n", Options: &authpb.UserAddOptions{NoPassword: true}})
	}, nil)
	// From a database of etcd 3.7, except for the hash.
	for _, c := range []struct {
		bucket engine.Bucket
		key    string
		want   string
	}{
		{engine.AuthUsers, "u", "\x0a\x01u\x12\x09hash of u\x1a\x01r\x22\x00"},
		{engine.AuthUsers, "n", "\x0a\x01n\x22\x02\x08\x01"},
		{engine.AuthRoles, "r", "\x0a\x01r\x12\x08\x08\x02\x12\x01a\x1a\x01\x00\x12\x03\x12\x01k"},
		{engine.Auth, "authRevision", "\x00\x00\x00\x00\x00\x00\x00\x07"},
		{engine.Auth, "authEnabled", ""},
	} {
		if got := b.stored(c.bucket, c.key); string(got) != c.want {
			t.Errorf("%v %s: got %q, want %q", c.bucket, c.key, got, c.want)
		}
	}
	b.enable()
	if got := b.stored(engine.Auth, "authEnabled"); string(got) != "\x01" {
		t.Errorf("enabled: got %q", got)
	}
	b.do(func(x engine.Batch) error { b.Disable(x); return nil }, nil)
	if got := b.stored(engine.Auth, "authEnabled"); string(got) != "\x00" {
		t.Errorf("disabled: got %q", got)
	}
}

func TestErrorsAndRevisions(t *testing.T) {
	b := newBench(t)
	rev := uint64(1)
	step := func(what string, want error, bump uint64, f func(engine.Batch) error) {
		t.Helper()
		before := b.dump()
		b.do(f, want)
		rev += bump
		if got := b.State().Revision(); got != rev {
			t.Errorf("%s: revision %d, want %d", what, got, rev)
			rev = got
		}
		if want != nil && b.dump() != before {
			t.Errorf("%s: refused, and yet it changed something", what)
		}
	}
	step("enable without root", ErrRootUserNotExist, 0, b.Enable)
	step("add root", nil, 1, func(x engine.Batch) error { return b.UserAdd(x, add(Root)) })
	step("enable without role", ErrRootRoleNotExist, 0, b.Enable)
	step("add root again", ErrUserAlreadyExist, 0, func(x engine.Batch) error { return b.UserAdd(x, add(Root)) })
	step("no name", ErrUserEmpty, 0, func(x engine.Batch) error { return b.UserAdd(x, add("")) })
	step("hash that is not base64", ErrNoPasswordUser, 0, func(x engine.Batch) error {
		return b.UserAdd(x, &pb.AuthUserAddRequest{Name: "x", HashedPassword: "?"})
	})
	step("password in the entry", ErrNoPasswordUser, 0, func(x engine.Batch) error {
		return b.UserAdd(x, &pb.AuthUserAddRequest{Name: "x", Password: "secret"})
	})
	step("role root need not exist", nil, 1, func(x engine.Batch) error { return b.UserGrantRole(x, Root, Root) })
	step("granted twice", nil, 0, func(x engine.Batch) error { return b.UserGrantRole(x, Root, Root) })
	step("unknown role", ErrRoleNotFound, 0, func(x engine.Batch) error { return b.UserGrantRole(x, Root, "r") })
	step("unknown user", ErrUserNotFound, 0, func(x engine.Batch) error { return b.UserGrantRole(x, "u", Root) })
	step("role without a name", ErrRoleEmpty, 0, func(x engine.Batch) error { return b.RoleAdd(x, "") })
	step("add a role", nil, 1, func(x engine.Batch) error { return b.RoleAdd(x, "r") })
	step("add it again", ErrRoleAlreadyExist, 0, func(x engine.Batch) error { return b.RoleAdd(x, "r") })
	step("no permission", ErrPermissionNotGiven, 0, func(x engine.Batch) error { return b.RoleGrantPermission(x, "r", nil) })
	step("empty range", ErrInvalidAuthMgmt, 0, func(x engine.Batch) error {
		return b.RoleGrantPermission(x, "r", grant(0, "b", "a"))
	})
	step("permission for nobody", ErrRoleNotFound, 0, func(x engine.Batch) error { return b.RoleGrantPermission(x, "q", grant(0, "a", "")) })
	step("grant", nil, 1, func(x engine.Batch) error { return b.RoleGrantPermission(x, "r", grant(0, "a", "")) })
	step("grant the same", nil, 1, func(x engine.Batch) error { return b.RoleGrantPermission(x, "r", grant(0, "a", "")) })
	step("take what is not there", ErrPermissionNotGranted, 0, func(x engine.Batch) error {
		return b.RoleRevokePermission(x, "r", []byte("a"), []byte("b"))
	})
	step("take from nobody", ErrRoleNotFound, 0, func(x engine.Batch) error { return b.RoleRevokePermission(x, "q", []byte("a"), nil) })
	step("take", nil, 1, func(x engine.Batch) error { return b.RoleRevokePermission(x, "r", []byte("a"), nil) })
	step("enable", nil, 0, b.Enable)
	step("enable again", nil, 0, b.Enable)
	step("delete root", ErrInvalidAuthMgmt, 0, func(x engine.Batch) error { return b.UserDelete(x, Root) })
	step("delete role root", ErrInvalidAuthMgmt, 0, func(x engine.Batch) error { return b.RoleDelete(x, Root) })
	step("revoke root of root", ErrInvalidAuthMgmt, 0, func(x engine.Batch) error { return b.UserRevokeRole(x, Root, Root) })
	step("revoke what is not held", ErrRoleNotGranted, 0, func(x engine.Batch) error { return b.UserRevokeRole(x, Root, "r") })
	step("revoke from nobody", ErrUserNotFound, 0, func(x engine.Batch) error { return b.UserRevokeRole(x, "u", "r") })
	step("password of nobody", ErrUserNotFound, 0, func(x engine.Batch) error {
		return b.UserChangePassword(x, &pb.AuthUserChangePasswordRequest{Name: "u"})
	})
	step("delete nobody", ErrUserNotFound, 0, func(x engine.Batch) error { return b.UserDelete(x, "u") })
	step("delete no role", ErrRoleNotFound, 0, func(x engine.Batch) error { return b.RoleDelete(x, "q") })
	step("disable", nil, 1, func(x engine.Batch) error { b.Disable(x); return nil })
	step("disable again", nil, 0, func(x engine.Batch) error { b.Disable(x); return nil })
	step("revoke root of root now", nil, 1, func(x engine.Batch) error { return b.UserRevokeRole(x, Root, Root) })
	step("delete root now", nil, 1, func(x engine.Batch) error { return b.UserDelete(x, Root) })
}

// dump returns all stored records.
func (b *bench) dump() string {
	it, err := b.eng.NewIter(nil, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	defer it.Close()
	var out []byte
	for ok := it.First(); ok; ok = it.Next() {
		v, _ := it.Value()
		out = fmt.Appendf(out, "%q=%q\n", it.Key(), v)
	}
	return string(out)
}

// TestLoadGivesTheSame applies requests and compares the state with the one loaded from
// the records that they stored.
func TestLoadGivesTheSame(t *testing.T) {
	b := newBench(t)
	b.role("r", grant(authpb.Permission_READ, "k", "m"))
	b.role("w", grant(authpb.Permission_WRITE, "k", "\x00"))
	b.user("u", "w", "r")
	b.enable()
	b.do(func(x engine.Batch) error { return b.RoleDelete(x, "w") }, nil)
	other := NewStore(NewSimpleTokens(0))
	if fresh, err := other.Load(b.eng); err != nil || fresh {
		t.Fatalf("fresh %v, %v", fresh, err)
	}
	got, want := other.State(), b.State()
	if got.Revision() != want.Revision() || !got.Enabled() || !slices.Equal(got.Users(), want.Users()) || !slices.Equal(got.Roles(), want.Roles()) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	roles, err := got.RolesOf("u")
	if err != nil || !slices.Equal(roles, []string{"r"}) {
		t.Errorf("roles of u: %v, %v", roles, err)
	}
	who := Info{"u", got.Revision()}
	if err := got.CanRead(who, []byte("k"), []byte("m")); err != nil {
		t.Error(err)
	}
	if err := got.CanWrite(who, []byte("k"), nil); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("write with a role that is deleted: %v", err)
	}
}

// Members of etcd up to 3.6 admit names that are not UTF-8.
func TestNamesOfAnyBytes(t *testing.T) {
	b := newBench(t)
	const role, name = "r\xff", "u\xfe\x80"
	b.role(role)
	b.user(name, role)
	b.user("plain", role)
	again := NewStore(NewSimpleTokens(0))
	if _, err := again.Load(b.eng); err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{name, "plain"} {
		a := again.State().users[u]
		if a == nil || !slices.Equal(a.user.Roles, []string{role}) {
			t.Fatalf("%q is read back as %v", u, a)
		}
	}
	// Of other names, the record is that of protobuf.
	u := &authpb.User{Name: []byte("n"), Password: []byte{1, 2}, Roles: []string{"a", "b"}, Options: &authpb.UserAddOptions{NoPassword: true}}
	want, err := proto.Marshal(u)
	if got, err2 := encodeUser(u); err != nil || err2 != nil || !bytes.Equal(got, want) {
		t.Errorf("encoded as %x, %v, want %x", got, err2, want)
	}
}

func TestChangesShowToUsersOfARole(t *testing.T) {
	b := newBench(t)
	b.role("r", grant(authpb.Permission_READ, "a", ""))
	b.user("u", "r")
	b.enable()
	read := func(key string) error {
		st := b.State()
		return st.CanRead(Info{"u", st.Revision()}, []byte(key), nil)
	}
	if err := read("a"); err != nil {
		t.Error(err)
	}
	before := b.State()
	b.do(func(x engine.Batch) error { return b.RoleGrantPermission(x, "r", grant(0, "b", "")) }, nil)
	if err := read("b"); err != nil {
		t.Errorf("after the grant: %v", err)
	}
	b.do(func(x engine.Batch) error { return b.RoleRevokePermission(x, "r", []byte("a"), nil) }, nil)
	if err := read("a"); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("after the revoke: %v", err)
	}
	if err := before.CanRead(Info{"u", before.Revision()}, []byte("a"), nil); err != nil {
		t.Errorf("a state that a reader holds has changed: %v", err)
	}
	if err := b.State().CanRead(Info{"u", before.Revision()}, []byte("b"), nil); !errors.Is(err, ErrAuthOldRevision) {
		t.Errorf("with an old revision: %v", err)
	}
	if err := b.State().CanRead(Info{}, []byte("b"), nil); !errors.Is(err, ErrUserEmpty) {
		t.Errorf("nobody: %v", err)
	}
	if err := b.State().CanRead(Info{"x", 99}, []byte("b"), nil); !errors.Is(err, ErrPermissionDenied) {
		t.Errorf("a user that is unknown: %v", err)
	}
	for who, want := range map[Info]error{{}: ErrUserEmpty, {User: "x"}: ErrUserNotFound, {User: "u"}: ErrPermissionDenied, {User: Root}: nil} {
		if err := b.State().IsAdmin(who); !errors.Is(err, want) {
			t.Errorf("admin %v: got %v, want %v", who, err, want)
		}
	}
}

func TestChangesWithinABatchShowAtOnceToEntriesOnly(t *testing.T) {
	b := newBench(t)
	x := b.eng.NewBatch()
	if err := b.UserAdd(x, add(Root)); err != nil {
		t.Fatal(err)
	}
	if err := b.UserGrantRole(x, Root, Root); err != nil {
		t.Fatal(err)
	}
	if err := b.Enable(x); err != nil {
		t.Fatal(err)
	}
	if !b.Next().Enabled() || b.State().Enabled() || len(b.State().Users()) != 0 {
		t.Errorf("before Publish: next enabled %v, readers see %v %v", b.Next().Enabled(), b.State().Enabled(), b.State().Users())
	}
	if !b.Publish() || !b.State().Enabled() {
		t.Error("Publish shows nothing")
	}
	if b.Publish() {
		t.Error("there is news although nothing has happened")
	}
}

// TestEqualKeys checks that etcd's quirk is preserved: only the first permission with a
// key is compared when the same range is granted again.
func TestEqualKeys(t *testing.T) {
	b := newBench(t)
	b.role("r", grant(0, "a", "c"), grant(0, "a", "b"), grant(0, "a", "b"), grant(1, "a", "c"))
	perms, err := b.State().Permissions("r")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range perms {
		got = append(got, fmt.Sprintf("%v %s %s", p.PermType, p.Key, p.RangeEnd))
	}
	want := []string{"WRITE a c", "READ a b", "READ a b"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDamagedRecords(t *testing.T) {
	for _, c := range []struct{ key, value []byte }{
		{engine.Auth.K([]byte("authRevision")), []byte{1}},
		{engine.AuthUsers.K([]byte("u")), []byte{0xff}},
		{engine.AuthRoles.K([]byte("r")), []byte{0x12, 9}},
	} {
		b := newBench(t)
		b.user("stays")
		x := b.eng.NewBatch()
		x.Set(c.key, c.value)
		if err := x.Commit(); err != nil {
			t.Fatal(err)
		}
		var damage *engine.CorruptionError
		if _, err := b.Load(b.eng); !errors.As(err, &damage) {
			t.Errorf("%q: got %v", c.key, err)
		}
		if got := b.State().Users(); len(got) != 1 {
			t.Errorf("%q: the state was replaced: %v", c.key, got)
		}
	}
}

// FuzzLoad loads arbitrary records.
func FuzzLoad(f *testing.F) {
	u, _ := proto.Marshal(&authpb.User{Name: []byte("u"), Roles: []string{"r", "root"}, Options: &authpb.UserAddOptions{NoPassword: true}})
	r, _ := proto.Marshal(&authpb.Role{Name: []byte("r"), KeyPermission: []*authpb.Permission{grant(2, "a", "\x00"), grant(0, "", "")}})
	f.Add("u", u, "r", r, []byte{0, 0, 0, 0, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, user string, u []byte, role string, r []byte, rev []byte) {
		eng := mem.New()
		x := eng.NewBatch()
		x.Set(enabledKey, []byte{1})
		x.Set(revisionKey, rev)
		x.Set(engine.AuthUsers.K([]byte(user)), u)
		x.Set(engine.AuthRoles.K([]byte(role)), r)
		if err := x.Commit(); err != nil {
			t.Fatal(err)
		}
		s := NewStore(NewSimpleTokens(0))
		if _, err := s.Load(eng); err != nil {
			return
		}
		st := s.State()
		who := Info{user, st.Revision()}
		if err := st.CanRead(who, []byte("a"), []byte("b")); err == nil && !st.HasRole(user, role) && !st.HasRole(user, Root) {
			t.Fatal("permitted without a role")
		}
		st.Permissions(role)
		s.RoleGrantPermission(eng.NewBatch(), role, grant(2, "m", ""))
		s.RoleDelete(eng.NewBatch(), role)
	})
}
