package v2auth

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"quorate/internal/engine/mem"
	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
)

// tree is a Member: the real v2 tree, and a hash that shows the password.
type tree struct {
	mu     sync.Mutex
	eng    *mem.Engine
	store  *v2store.Store
	before func(*v2request.Request) // called before a write: what another member does first
	failed error                    // of every request, unless nil
}

func newTree(t testing.TB) (*tree, *Store) {
	t.Helper()
	m := &tree{eng: mem.New()}
	var err error
	if m.store, err = v2store.Load(m.eng, v2store.Options{Now: func() time.Time { return time.Unix(1e9, 0) }}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.store.Close)
	return m, New(m, zap.NewNop())
}

func (m *tree) V2Do(_ context.Context, r *v2request.Request) (*v2store.Event, error) {
	if m.failed != nil {
		return nil, m.failed
	}
	if r.Method == "GET" || r.Method == "QGET" {
		return m.store.Get(r.Path, r.Recursive, r.Sorted)
	}
	if before := m.before; before != nil {
		m.before = nil
		before(r)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.eng.NewBatch()
	ev, err := m.store.Apply(b, r)
	if cerr := b.Commit(); cerr != nil {
		return nil, cerr
	}
	return ev, err
}

func (m *tree) V2HashPassword(_ context.Context, password string) ([]byte, error) {
	return []byte("hash of " + password), nil
}

func (m *tree) V2PasswordMatches(_ context.Context, hash []byte, password string) (bool, error) {
	return string(hash) == "hash of "+password, nil
}

func (m *tree) put(t *testing.T, at, value string) {
	t.Helper()
	if _, err := m.V2Do(t.Context(), &v2request.Request{Method: "PUT", Path: at, Val: value}); err != nil {
		t.Fatal(err)
	}
}

// status returns the status of an error, 0 for none, -1 for an error of another type.
func status(err error) int {
	var e *Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return e.Status
	}
	return -1
}

func TestUsers(t *testing.T) {
	_, s := newTree(t)
	ctx := t.Context()
	for i, step := range []struct {
		do     func() error
		status int
		text   string
	}{
		{func() error { _, err := s.CreateUser(ctx, User{User: "a"}); return err }, 400, "auth: Cannot create user a with an empty password"},
		{func() error {
			_, err := s.CreateUser(ctx, User{User: "a", Password: "x", Roles: []string{"r"}})
			return err
		}, 0, ""},
		{func() error { _, err := s.CreateUser(ctx, User{User: "a", Password: "y"}); return err }, 409, "auth: User a already exists."},
		{func() error { _, err := s.UpdateUser(ctx, User{User: "b", Password: "y"}); return err }, 404, "auth: User b does not exist."},
		{func() error { _, err := s.UpdateUser(ctx, User{User: "a", Grant: []string{"r"}}); return err }, 409, "auth: Granting duplicate role r for user a"},
		{func() error { _, err := s.UpdateUser(ctx, User{User: "a", Revoke: []string{"q"}}); return err }, 409, "auth: Revoking ungranted role q for user a"},
		{func() error { _, err := s.UpdateUser(ctx, User{User: "a"}); return err }, 400, "auth: User not updated. Use grant/revoke/password to update the user."},
		{func() error {
			_, err := s.UpdateUser(ctx, User{User: "a", Grant: []string{"q"}, Revoke: []string{"r"}})
			return err
		}, 0, ""},
		{func() error { return s.DeleteUser(ctx, "b") }, 404, "auth: User b does not exist"},
	} {
		err := step.do()
		if status(err) != step.status || err != nil && err.Error() != step.text {
			t.Errorf("step %d: %v, want %d %s", i, err, step.status, step.text)
		}
	}
	u, err := s.User(ctx, "a")
	if want := (User{User: "a", Password: "hash of x", Roles: []string{"q"}}); err != nil || !reflect.DeepEqual(u, want) {
		t.Errorf("%+v, %v; want %+v", u, err, want)
	}
	for password, in := range map[string]bool{"x": true, "y": false, "": false} {
		if got, err := s.Authenticate(ctx, "a", password); (got != nil) != in || err != nil {
			t.Errorf("%q lets in %v, %v", password, got, err)
		}
	}
	if got, err := s.Authenticate(ctx, "nobody", "x"); got != nil || err != nil {
		t.Errorf("one that is not there: %v, %v", got, err)
	}
	if err := s.DeleteUser(ctx, "a"); err != nil {
		t.Error(err)
	}
	if got, err := s.Named(ctx, "a"); got != nil || err != nil {
		t.Errorf("one that was deleted: %v, %v", got, err)
	}
}

func TestSwitch(t *testing.T) {
	_, s := newTree(t)
	ctx := t.Context()
	must := func(want int, err error) {
		t.Helper()
		if status(err) != want {
			t.Errorf("got %v, want status %d", err, want)
		}
	}
	must(409, s.Disable(ctx))
	must(409, s.Enable(ctx)) // no root
	_, err := s.CreateUser(ctx, User{User: RootUser, Password: "x"})
	must(0, err)
	must(0, s.Enable(ctx))
	must(409, s.Enable(ctx))
	if on, err := s.Enabled(ctx); !on || err != nil {
		t.Errorf("enabled: %v, %v", on, err)
	}
	must(403, s.DeleteUser(ctx, RootUser))
	if root, err := s.User(ctx, RootUser); err != nil || !root.IsRoot() {
		t.Errorf("root is %+v, %v", root, err)
	}
	// The guest created by Enable has all permissions, until they are revoked.
	if ok, err := s.Allowed(ctx, nil, "/a", true, false); !ok || err != nil {
		t.Errorf("a guest: %v, %v", ok, err)
	}
	_, err = s.UpdateRole(ctx, Role{Role: GuestRole, Revoke: &Permissions{KV: Patterns{Write: []string{"/*"}}}})
	must(0, err)
	if ok, err := s.Allowed(ctx, nil, "/a", true, false); ok || err != nil {
		t.Errorf("a guest without writes: %v, %v", ok, err)
	}
	must(0, s.Disable(ctx))
	must(0, s.DeleteUser(ctx, RootUser))
	for _, err := range []error{s.CreateRole(ctx, Role{Role: RootRole}), s.DeleteRole(ctx, RootRole)} {
		must(403, err)
	}
}

// Unreadable data grants no access.
func TestDamage(t *testing.T) {
	m, s := newTree(t)
	ctx := t.Context()
	m.put(t, "/2/enabled", "perhaps")
	m.put(t, "/2/users/a", `{"user":"a","password":"hash of x","roles":["bad"]`)
	m.put(t, "/2/users/b", `{"user":"b","password":"hash of x","roles":["bad"]}`)
	m.put(t, "/2/roles/bad", `[`)
	m.put(t, "/2/users/dir/x", `{}`)
	if on, err := s.Enabled(ctx); err == nil {
		t.Errorf("a switch that cannot be read is %v", on)
	}
	for _, name := range []string{"a", "dir"} {
		if u, err := s.Authenticate(ctx, name, "x"); err == nil || u != nil {
			t.Errorf("%s is let in as %v, %v", name, u, err)
		}
	}
	b, err := s.Authenticate(ctx, "b", "x")
	if err != nil || b == nil {
		t.Fatal(b, err)
	}
	if ok, _ := s.Allowed(ctx, b, "/k", false, false); ok {
		t.Error("a role that cannot be read allows a key")
	}
	m.failed = errors.New("no quorum")
	if ok, err := s.Allowed(ctx, b, "/k", false, false); ok || !errors.Is(err, m.failed) {
		t.Errorf("without a quorum: %v, %v", ok, err)
	}
	if on, err := s.Enabled(ctx); on || !errors.Is(err, m.failed) {
		t.Errorf("without a quorum: enabled %v, %v", on, err)
	}
}

// Of two concurrent grants, on two members, both are stored.
func TestGrantsBesideEachOther(t *testing.T) {
	m, s := newTree(t)
	ctx := t.Context()
	if _, err := s.CreateUser(ctx, User{User: "a", Password: "x"}); err != nil {
		t.Fatal(err)
	}
	other := New(m, zap.NewNop())
	other.made = true
	m.before = func(r *v2request.Request) {
		if _, err := other.UpdateUser(ctx, User{User: "a", Grant: []string{"theirs"}}); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.UpdateUser(ctx, User{User: "a", Grant: []string{"ours"}}); err != nil {
		t.Fatal(err)
	}
	if u, err := s.User(ctx, "a"); err != nil || !slices.Equal(u.Roles, []string{"ours", "theirs"}) {
		t.Errorf("%+v, %v", u, err)
	}
}

// keysOf returns everything in the tree.
func keysOf(t *testing.T, m *tree) map[string]bool {
	t.Helper()
	ev, err := m.store.Get("/", true, true)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	var walk func(ns []*v2store.Node)
	walk = func(ns []*v2store.Node) {
		for _, n := range ns {
			keys[n.Key] = true
			walk(n.Nodes)
		}
	}
	walk(ev.Node.Nodes)
	return keys
}

// TestNamesStayInTheirDirectory has every operation take names that look like paths:
// nothing appears next to the users and roles, and existing data is not changed.
func TestNamesStayInTheirDirectory(t *testing.T) {
	m, s := newTree(t)
	ctx := t.Context()
	m.put(t, "/1/secret", `{"user":"secret","password":"hash of x","roles":["root"]}`)
	if _, err := s.CreateUser(ctx, User{User: "a", Password: "x"}); err != nil {
		t.Fatal(err)
	}
	before := keysOf(t, m)
	parts := []string{"..", ".", "", "/", "a", "1", "secret", "users", "enabled"}
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		name := ""
		for range 1 + r.IntN(6) {
			name += parts[r.IntN(len(parts))]
			if r.IntN(2) == 0 {
				name += "/"
			}
		}
		u, role := User{User: name, Password: "y", Roles: []string{name}}, Role{Role: name}
		if got, _ := s.Authenticate(ctx, name, "x"); got != nil && name != "a" {
			t.Fatalf("%q logs in as %+v", name, got)
		}
		s.CreateUser(ctx, u)
		s.PutUser(ctx, u)
		s.UpdateUser(ctx, u)
		s.CreateRole(ctx, role)
		s.UpdateRole(ctx, role)
		s.Allowed(ctx, &u, "/k", true, true)
		if name != "a" {
			s.DeleteUser(ctx, name)
			s.DeleteRole(ctx, name)
		}
	}
	for key := range keysOf(t, m) {
		if dir := path.Dir(key); !before[key] && dir != usersDir && dir != rolesDir {
			t.Errorf("a name has made %s", key)
		}
	}
	if secret, err := m.store.Get("/1/secret", false, false); err != nil || !strings.Contains(*secret.Node.Value, "hash of x") {
		t.Errorf("a key of clients: %v, %v", secret, err)
	}
}

// TestRolesAgainstModel grants and revokes at random and compares a role's permissions with
// a model that keeps two sets.
func TestRolesAgainstModel(t *testing.T) {
	_, s := newTree(t)
	ctx := t.Context()
	if err := s.CreateRole(ctx, Role{Role: "r"}); err != nil {
		t.Fatal(err)
	}
	patterns := []string{"/a", "/a*", "/a/*", "/ab", "/*", "*", "/b/c"}
	keys := []string{"/a", "/ab", "/a/b", "/b", "/b/c", "/"}
	model := [2]map[string]bool{{}, {}} // read, write
	r := rand.New(rand.NewPCG(3, 4))
	pick := func() []string {
		var list []string
		for _, p := range patterns {
			if r.IntN(4) == 0 {
				list = append(list, p)
			}
		}
		return list
	}
	covers := func(set map[string]bool, key string, recursive bool) bool {
		for p := range set {
			if p == key && !recursive || strings.HasSuffix(p, "*") && strings.HasPrefix(key, p[:len(p)-1]) {
				return true
			}
		}
		return false
	}
	user := &User{User: "u", Roles: []string{"r", "missing"}}
	for step := range 500 {
		grant := &Permissions{KV: Patterns{Read: pick(), Write: pick()}}
		revoke := &Permissions{KV: Patterns{Read: pick(), Write: pick()}}
		want := [2]map[string]bool{{}, {}}
		duplicate := false
		for i, change := range [][2][]string{{grant.KV.Read, revoke.KV.Read}, {grant.KV.Write, revoke.KV.Write}} {
			for p := range model[i] {
				want[i][p] = true
			}
			for _, p := range change[0] {
				duplicate = duplicate || want[i][p]
				want[i][p] = true
			}
			for _, p := range change[1] {
				delete(want[i], p)
			}
		}
		same := reflect.DeepEqual(model, want)
		_, err := s.UpdateRole(ctx, Role{Role: "r", Grant: grant, Revoke: revoke})
		switch {
		case duplicate && status(err) != http.StatusConflict:
			t.Fatalf("step %d: a second grant is %v", step, err)
		case !duplicate && !same && err != nil:
			t.Fatalf("step %d: %v", step, err)
		case err == nil:
			model = want
		}
		for _, key := range keys {
			for _, write := range []bool{false, true} {
				for _, recursive := range []bool{false, true} {
					i := 0
					if write {
						i = 1
					}
					got, err := s.Allowed(ctx, user, key, write, recursive)
					if want := covers(model[i], key, recursive); got != want || err != nil {
						t.Fatalf("step %d: %s, write %v, recursive %v: %v, %v; want %v by %v", step, key, write, recursive, got, err, want, fmt.Sprint(model[i]))
					}
				}
			}
		}
	}
}
