// Package v2auth stores the users and roles of the v2 API and decides about their
// permissions. They are independent of those of the v3 API.
//
// In: requests about users, roles and the switch, and names with passwords. Out: the same
// objects, decisions, and v2 requests to the member. Always true: the data is JSON below /2
// of the v2 tree, with etcd's paths and fields, so a cluster of etcd 3.5 and this program
// can read each other's data; a name never leads out of its directory; and unreadable data
// grants no access.
package v2auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"quorate/internal/legacy/v2request"
	"quorate/internal/legacy/v2store"
)

// Names with a special meaning.
const (
	RootUser  = "root" // without it authentication cannot be enabled
	RootRole  = "root" // built in, may do everything
	GuestRole = "guest"
)

// Paths of the data in the v2 tree.
const (
	prefix     = "/2"
	enabledKey = prefix + "/enabled"
	usersDir   = prefix + "/users"
	rolesDir   = prefix + "/roles"
)

// maxRetries bounds how often an update is retried because of a concurrent one.
const maxRetries = 16

// Member is where the data is stored. Its methods are called concurrently.
type Member interface {
	// V2Do runs a request against the v2 tree. GET reads locally, QGET is linearizable, and
	// a write has been applied when V2Do returns. It times out as a request does.
	V2Do(ctx context.Context, r *v2request.Request) (*v2store.Event, error)
	// V2HashPassword returns a bcrypt hash of cost 10. It waits for its turn in a bounded
	// queue.
	V2HashPassword(ctx context.Context, password string) ([]byte, error)
	// V2PasswordMatches compares a password with such a hash, in the same queue.
	V2PasswordMatches(ctx context.Context, hash []byte, password string) (bool, error)
}

// Error is an error response to the client with its HTTP status.
type Error struct {
	Status int
	Text   string
}

func (e *Error) Error() string { return e.Text }

func refuse(status int, format string, args ...any) *Error {
	return &Error{Status: status, Text: "auth: " + fmt.Sprintf(format, args...)}
}

// User is a user as clients send it and as it is stored. Password is plain text in
// requests, a hash in the store, and empty in answers.
type User struct {
	User     string   `json:"user"`
	Password string   `json:"password,omitempty"`
	Roles    []string `json:"roles"`
	Grant    []string `json:"grant,omitempty"`
	Revoke   []string `json:"revoke,omitempty"`
}

// IsRoot reports whether the user may do everything.
func (u *User) IsRoot() bool { return slices.Contains(u.Roles, RootRole) }

// Store holds the users and roles of the cluster as this member sees them. It is safe for
// concurrent use; reads are local unless their comment says otherwise.
type Store struct {
	m  Member
	lg *zap.Logger

	mu   sync.Mutex // held by the goroutine that makes the directories
	made bool
}

// New returns the store of a member.
func New(m Member, lg *zap.Logger) *Store { return &Store{m: m, lg: lg} }

// Enabled reports whether requests must authenticate. If the switch cannot be read it
// returns an error, and no access is granted.
func (s *Store) Enabled(ctx context.Context) (bool, error) {
	var on bool
	_, err := s.load(ctx, "GET", enabledKey, &on)
	if isCode(err, v2store.CodeKeyNotFound) {
		return false, nil
	}
	return on, err
}

// Enable turns authentication on. It requires the user root, and creates the role guest,
// with all permissions, if it does not exist.
func (s *Store) Enable(ctx context.Context) error {
	on, err := s.Enabled(ctx)
	if err != nil {
		return err
	}
	if on {
		return refuse(http.StatusConflict, "already enabled")
	}
	if _, _, err := s.user(ctx, RootUser, "QGET"); err != nil {
		if isStatus(err, http.StatusNotFound) {
			err = refuse(http.StatusConflict, "No root user available, please create one")
		}
		return err
	}
	if _, _, err := s.role(ctx, GuestRole, "QGET"); isStatus(err, http.StatusNotFound) {
		everything := Permissions{KV: Patterns{Read: []string{"/*"}, Write: []string{"/*"}}}
		err = s.CreateRole(ctx, Role{Role: GuestRole, Permissions: everything})
		if err != nil && !isStatus(err, http.StatusConflict) { // another member was faster
			return err
		}
	} else if err != nil {
		return err
	}
	return s.turn(ctx, true)
}

// Disable turns authentication off.
func (s *Store) Disable(ctx context.Context) error {
	on, err := s.Enabled(ctx)
	if err != nil {
		return err
	}
	if !on {
		return refuse(http.StatusConflict, "already disabled")
	}
	return s.turn(ctx, false)
}

func (s *Store) turn(ctx context.Context, on bool) error {
	err := s.store(ctx, enabledKey, on, &v2request.Request{PrevExist: new(true)})
	if err == nil {
		s.lg.Info("switched authentication of the v2 API", zap.Bool("enabled", on))
	}
	return err
}

// Users returns the names of all users, sorted.
func (s *Store) Users(ctx context.Context) ([]string, error) { return s.names(ctx, usersDir) }

// Roles returns the names of all roles, sorted, the built-in root among them.
func (s *Store) Roles(ctx context.Context) ([]string, error) {
	names, err := s.names(ctx, rolesDir)
	if err != nil {
		return nil, err
	}
	names = append(names, RootRole)
	slices.Sort(names)
	return names, nil
}

func (s *Store) names(ctx context.Context, dir string) ([]string, error) {
	ev, err := s.m.V2Do(ctx, &v2request.Request{Method: "GET", Path: dir})
	if isCode(err, v2store.CodeKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range ev.Node.Nodes {
		names = append(names, path.Base(n.Key))
	}
	slices.Sort(names)
	return names, nil
}

// User returns a user with its password hash.
func (s *Store) User(ctx context.Context, name string) (User, error) {
	u, _, err := s.user(ctx, name, "GET")
	return u, err
}

func (s *Store) user(ctx context.Context, name, method string) (u User, index uint64, err error) {
	missing := refuse(http.StatusNotFound, "User %s does not exist.", name)
	if !isName(name) {
		return u, 0, missing
	}
	index, err = s.load(ctx, method, usersDir+"/"+name, &u)
	if isCode(err, v2store.CodeKeyNotFound) {
		err = missing
	}
	if err != nil {
		return User{}, 0, err
	}
	if u.User == RootUser {
		u.attachRoot()
	}
	return u, index, nil
}

func (u *User) attachRoot() {
	if !slices.Contains(u.Roles, RootRole) {
		u.Roles = append(slices.Clip(u.Roles), RootRole)
	}
}

// CreateUser adds a user.
func (s *Store) CreateUser(ctx context.Context, u User) (User, error) {
	if !isName(u.User) {
		return User{}, errBadName
	}
	if u.User == RootUser {
		u.attachRoot()
	}
	if u.Password == "" {
		return User{}, refuse(http.StatusBadRequest, "Cannot create user %s with an empty password", u.User)
	}
	hash, err := s.m.V2HashPassword(ctx, u.Password)
	if err != nil {
		return User{}, err
	}
	u.Password = string(hash)
	err = s.store(ctx, usersDir+"/"+u.User, u, &v2request.Request{PrevExist: new(false)})
	if isCode(err, v2store.CodeNodeExists) {
		err = refuse(http.StatusConflict, "User %s already exists.", u.User)
	}
	if err != nil {
		return User{}, err
	}
	s.lg.Info("created a user of the v2 API", zap.String("user-name", u.User))
	return u, nil
}

// PutUser adds a user, or sets the password of an existing one.
func (s *Store) PutUser(ctx context.Context, u User) (out User, created bool, err error) {
	if !isName(u.User) {
		return User{}, false, errBadName
	}
	_, _, err = s.user(ctx, u.User, "QGET")
	if isStatus(err, http.StatusNotFound) {
		out, err = s.CreateUser(ctx, u)
		return out, err == nil, err
	}
	if err == nil {
		out, err = s.UpdateUser(ctx, u)
	}
	return out, false, err
}

// UpdateUser changes a user's password, and grants and revokes its roles.
func (s *Store) UpdateUser(ctx context.Context, u User) (User, error) {
	var hash []byte
	return update(ctx, s, usersDir+"/"+u.User, func() (old, changed User, index uint64, err error) {
		if old, index, err = s.user(ctx, u.User, "QGET"); err != nil {
			return
		}
		if u.Password != "" && hash == nil {
			if hash, err = s.m.V2HashPassword(ctx, u.Password); err != nil {
				return
			}
		}
		changed, err = old.merge(u, string(hash))
		if err == nil && reflect.DeepEqual(old, changed) {
			err = refuse(http.StatusBadRequest, "User not updated. Use grant/revoke/password to update the user.")
		}
		return
	})
}

// merge returns the user after the changes in u. An empty hash leaves the password
// unchanged.
func (old User) merge(u User, hash string) (User, error) {
	out := User{User: old.User, Password: old.Password}
	if hash != "" {
		out.Password = hash
	}
	roles := set(old.Roles)
	for _, r := range u.Grant {
		if roles[r] {
			return User{}, refuse(http.StatusConflict, "Granting duplicate role %s for user %s", r, u.User)
		}
		roles[r] = true
	}
	for _, r := range u.Revoke {
		if !roles[r] {
			return User{}, refuse(http.StatusConflict, "Revoking ungranted role %s for user %s", r, u.User)
		}
		delete(roles, r)
	}
	out.Roles = sorted(roles)
	return out, nil
}

// DeleteUser removes a user; root only while authentication is off.
func (s *Store) DeleteUser(ctx context.Context, name string) error {
	if name == RootUser {
		on, err := s.Enabled(ctx)
		if err != nil {
			return err
		}
		if on {
			return refuse(http.StatusForbidden, "Cannot delete root user while auth is enabled.")
		}
	}
	err := s.remove(ctx, usersDir, name)
	if isCode(err, v2store.CodeKeyNotFound) {
		err = refuse(http.StatusNotFound, "User %s does not exist", name)
	}
	if err == nil {
		s.lg.Info("deleted a user of the v2 API", zap.String("user-name", name))
	}
	return err
}

// Role returns a role.
func (s *Store) Role(ctx context.Context, name string) (Role, error) {
	r, _, err := s.role(ctx, name, "GET")
	return r, err
}

func (s *Store) role(ctx context.Context, name, method string) (r Role, index uint64, err error) {
	if name == RootRole {
		return Role{Role: RootRole, Permissions: Permissions{KV: Patterns{Read: []string{"/*"}, Write: []string{"/*"}}}}, 0, nil
	}
	missing := refuse(http.StatusNotFound, "Role %s does not exist.", name)
	if !isName(name) {
		return r, 0, missing
	}
	index, err = s.load(ctx, method, rolesDir+"/"+name, &r)
	if isCode(err, v2store.CodeKeyNotFound) {
		err = missing
	}
	return r, index, err
}

// CreateRole adds a role.
func (s *Store) CreateRole(ctx context.Context, r Role) error {
	if r.Role == RootRole {
		return errRootRole
	}
	if !isName(r.Role) {
		return errBadName
	}
	err := s.store(ctx, rolesDir+"/"+r.Role, r, &v2request.Request{PrevExist: new(false)})
	if isCode(err, v2store.CodeNodeExists) {
		err = refuse(http.StatusConflict, "Role %s already exists.", r.Role)
	}
	if err == nil {
		s.lg.Info("created a role of the v2 API", zap.String("role-name", r.Role))
	}
	return err
}

// UpdateRole grants patterns to a role and revokes patterns from it.
func (s *Store) UpdateRole(ctx context.Context, r Role) (Role, error) {
	if r.Role == RootRole {
		return Role{}, errRootRole
	}
	return update(ctx, s, rolesDir+"/"+r.Role, func() (old, changed Role, index uint64, err error) {
		if old, index, err = s.role(ctx, r.Role, "QGET"); err != nil {
			return
		}
		changed, err = old.merge(r)
		if err == nil && reflect.DeepEqual(old, changed) {
			err = refuse(http.StatusBadRequest, "Role not updated. Use grant/revoke to update the role.")
		}
		return
	})
}

// DeleteRole removes a role. Users keep its name.
func (s *Store) DeleteRole(ctx context.Context, name string) error {
	if name == RootRole {
		return errRootRole
	}
	err := s.remove(ctx, rolesDir, name)
	if isCode(err, v2store.CodeKeyNotFound) {
		err = refuse(http.StatusNotFound, "Role %s doesn't exist.", name)
	}
	if err == nil {
		s.lg.Info("deleted a role of the v2 API", zap.String("role-name", name))
	}
	return err
}

var (
	errRootRole = refuse(http.StatusForbidden, "Cannot modify role %s: is root role.", RootRole)
	errBadName  = refuse(http.StatusBadRequest, "a name must not be empty, . or .., and has no slash")
)

// isName reports whether a name is a single path element. The user of an Authorization
// header may be any text, and so may a role that an administrator has invented; neither may
// lead to the keys of clients, which they can write.
func isName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.Contains(name, "/")
}

func isCode(err error, code int) bool {
	var e *v2store.Error
	return errors.As(err, &e) && e.Code == code
}

func isStatus(err error, status int) bool {
	var e *Error
	return errors.As(err, &e) && e.Status == status
}

// update replaces the value at a path by the result of next, and retries if the value has
// changed meanwhile: of two concurrent grants both are stored.
func update[T any](ctx context.Context, s *Store, at string, next func() (old, changed T, index uint64, err error)) (T, error) {
	var none T
	for range maxRetries {
		_, changed, index, err := next()
		if err != nil {
			return none, err
		}
		err = s.store(ctx, at, changed, &v2request.Request{PrevExist: new(true), PrevIndex: index})
		if err == nil {
			s.lg.Info("changed authentication data of the v2 API", zap.String("path", at))
			return changed, nil
		}
		if !isCode(err, v2store.CodeCompareFailed) {
			return none, err
		}
	}
	return none, fmt.Errorf("change %s: gave up after %d concurrent changes", at, maxRetries)
}

// load decodes the value at a path and returns the index of its last change.
func (s *Store) load(ctx context.Context, method, at string, into any) (uint64, error) {
	ev, err := s.m.V2Do(ctx, &v2request.Request{Method: method, Path: at})
	if err != nil {
		return 0, err
	}
	if ev.Node == nil || ev.Node.Value == nil {
		return 0, fmt.Errorf("read %s of the v2 store: it is a directory", at)
	}
	if err := json.Unmarshal([]byte(*ev.Node.Value), into); err != nil {
		return 0, fmt.Errorf("decode %s of the v2 store: %w", at, err)
	}
	return ev.Node.ModifiedIndex, nil
}

// store writes a value under the conditions in r.
func (s *Store) store(ctx context.Context, at string, value any, r *v2request.Request) error {
	if err := s.makeDirs(ctx); err != nil {
		return err
	}
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s of the v2 store: %w", at, err)
	}
	r.Method, r.Path, r.Val = "PUT", at, string(data)
	_, err = s.m.V2Do(ctx, r)
	return err
}

func (s *Store) remove(ctx context.Context, dir, name string) error {
	if err := s.makeDirs(ctx); err != nil {
		return err
	}
	if !isName(name) {
		return v2store.NewError(v2store.CodeKeyNotFound, name, 0)
	}
	_, err := s.m.V2Do(ctx, &v2request.Request{Method: "DELETE", Path: dir + "/" + name, PrevExist: new(true)})
	return err
}

// makeDirs creates the directories of the data, once in the life of a cluster: each of the
// four writes takes an index, as in etcd.
func (s *Store) makeDirs(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.made {
		return nil
	}
	for _, r := range []v2request.Request{
		{Path: prefix, Dir: true}, {Path: usersDir, Dir: true}, {Path: rolesDir, Dir: true}, {Path: enabledKey, Val: "false"},
	} {
		r.Method, r.PrevExist = "PUT", new(false)
		if _, err := s.m.V2Do(ctx, &r); err != nil && !isCode(err, v2store.CodeNodeExists) {
			return err
		}
	}
	s.made = true
	return nil
}
