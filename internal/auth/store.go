package auth

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"quorate/internal/engine"
	"quorate/internal/ids"
	"quorate/internal/metrics"
	"quorate/internal/password"
	"quorate/internal/wire"
)

var (
	enabledKey  = engine.Auth.K([]byte("authEnabled"))
	revisionKey = engine.Auth.K([]byte("authRevision"))
)

// Store holds the users and roles of one member. Only the apply goroutine may call
// its methods, except State and Tokens, which are safe for concurrent use.
//
// Next shows changes at once, so that later entries of a batch see those of earlier
// ones. Readers see them after Publish.
type Store struct {
	tokens    *Tokens
	published atomic.Pointer[State]
	next      *State
	owned     bool // next is not the published state
}

// NewStore returns a store without users, the state of a new cluster.
func NewStore(t *Tokens) *Store {
	s := &Store{tokens: t}
	s.set(&State{revision: 1, users: map[string]*account{}, roles: map[string]*authpb.Role{}})
	return s
}

func (s *Store) set(st *State) {
	s.next, s.owned = st, false
	s.publish()
}

func (s *Store) publish() {
	s.published.Store(s.next)
	metrics.DebuggingAuthRevision.Set(float64(s.next.revision))
}

// State returns the published state.
func (s *Store) State() *State { return s.published.Load() }

// Next returns the state with all applied changes.
func (s *Store) Next() *State { return s.next }

// Tokens returns the tokens of this member.
func (s *Store) Tokens() *Tokens { return s.tokens }

// Publish makes the applied changes visible to readers and reports whether there were
// any. It must precede the publication of keys written after these changes.
func (s *Store) Publish() bool {
	if !s.owned {
		return false
	}
	s.owned = false
	s.publish()
	return true
}

// Load replaces everything but the tokens with the state stored in r: at start, and
// after a snapshot was installed. If a stored value cannot be decoded, it returns an
// engine.CorruptionError and changes nothing. fresh is set if the store has no
// revision yet; Init writes it.
func (s *Store) Load(r engine.Reader) (fresh bool, err error) {
	st := &State{users: map[string]*account{}, roles: map[string]*authpb.Role{}}
	v, err := r.Get(nil, enabledKey)
	if err != nil && !errors.Is(err, engine.ErrNotFound) {
		return false, err
	}
	st.enabled = bytes.Equal(v, []byte{1})
	v, err = r.Get(nil, revisionKey)
	switch {
	case errors.Is(err, engine.ErrNotFound):
		fresh, st.revision = true, 1
	case err != nil:
		return false, err
	case len(v) != 8:
		return false, &engine.CorruptionError{File: `"authRevision"`, Err: fmt.Errorf("value of %d bytes, want 8", len(v))}
	default:
		st.revision = binary.BigEndian.Uint64(v)
	}
	err = scan(r, engine.AuthUsers, func(name string, value []byte) error {
		u := &authpb.User{}
		if err := wire.Unmarshal(value, u); err != nil {
			return err
		}
		st.users[name] = newAccount(u)
		return nil
	})
	if err != nil {
		return false, err
	}
	err = scan(r, engine.AuthRoles, func(name string, value []byte) error {
		role := &authpb.Role{}
		if err := wire.Unmarshal(value, role); err != nil {
			return err
		}
		st.roles[name] = role
		return nil
	})
	if err != nil {
		return false, err
	}
	s.set(st)
	return fresh, nil
}

func scan(r engine.Reader, bucket engine.Bucket, f func(name string, value []byte) error) (err error) {
	lower, upper := bucket.Bounds()
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		name := string(it.Key()[1:])
		value, err := it.Value()
		if err != nil {
			return err
		}
		if err := f(name, value); err != nil {
			return &engine.CorruptionError{File: fmt.Sprintf("bucket %v, key %q", bucket, name), Err: err}
		}
	}
	return it.Error()
}

// Init writes the first revision of a new cluster.
func (s *Store) Init(b engine.Batch) { putRevision(b, s.next.revision) }

func putRevision(b engine.Batch, rev uint64) {
	b.Set(revisionKey, binary.BigEndian.AppendUint64(nil, rev))
}

// change returns the state to modify, a copy if the current one is published.
func (s *Store) change() *State {
	if !s.owned {
		s.next, s.owned = s.next.clone(), true
	}
	return s.next
}

// commit increments the revision.
func (s *Store) commit(b engine.Batch) {
	st := s.change()
	st.revision++
	putRevision(b, st.revision)
}

func (s *Store) putUser(b engine.Batch, u *authpb.User) error {
	v, err := encodeUser(u)
	if err != nil {
		return fmt.Errorf("encode user: %w", err)
	}
	b.Set(engine.AuthUsers.K(u.Name), v)
	s.change().users[string(u.Name)] = newAccount(u)
	return nil
}

// encodeUser is proto.Marshal for names of roles that need not be UTF-8: members of etcd up to 3.6
// admit any bytes.
func encodeUser(u *authpb.User) ([]byte, error) {
	b, err := proto.Marshal(&authpb.User{Name: u.Name, Password: u.Password})
	if err != nil {
		return nil, err
	}
	for _, role := range u.Roles { // field 3, between the two parts
		b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), role)
	}
	return proto.MarshalOptions{}.MarshalAppend(b, &authpb.User{Options: u.Options})
}

// putRole also drops the cached permissions of the users that hold the role.
func (s *Store) putRole(b engine.Batch, r *authpb.Role) error {
	v, err := proto.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode role: %w", err)
	}
	b.Set(engine.AuthRoles.K(r.Name), v)
	st := s.change()
	st.roles[string(r.Name)] = r
	for name, a := range st.users {
		if slices.Contains(a.user.Roles, string(r.Name)) {
			st.users[name] = newAccount(a.user)
		}
	}
	return nil
}

// Enable turns authentication on. It is idempotent.
func (s *Store) Enable(b engine.Batch) error {
	if s.next.enabled {
		return nil
	}
	a := s.next.users[Root]
	if a == nil {
		return ErrRootUserNotExist
	}
	if !a.root {
		return ErrRootRoleNotExist
	}
	b.Set(enabledKey, []byte{1})
	s.change().enabled = true
	return nil
}

// Disable turns authentication off and drops all tokens.
func (s *Store) Disable(b engine.Batch) {
	if !s.next.enabled {
		return
	}
	b.Set(enabledKey, []byte{0})
	s.change().enabled = false
	s.commit(b)
	s.tokens.reset()
}

// Authenticate issues a token for the user. The member that received the request has
// checked the password. index is that of the entry, and prefix is part of it, so an
// entry that is applied again after a restart issues the same token. The result is
// empty for signed tokens: the member that received the request signs them.
func (s *Store) Authenticate(user, prefix string, index ids.Index, now time.Time) (token string, err error) {
	if !s.next.enabled {
		return "", ErrAuthNotEnabled
	}
	a := s.next.users[user]
	if a == nil || a.user.Options.GetNoPassword() {
		return "", ErrAuthFailed
	}
	return s.tokens.assign(user, prefix, index, now)
}

// storedHash returns the hash in a request, or etcd's error if there is none.
func storedHash(given, hashed string) ([]byte, error) {
	hash, err := password.Stored(given, hashed)
	if err != nil {
		return nil, ErrNoPasswordUser
	}
	return hash, nil
}

// UserAdd adds a user. The request contains the hash of the password.
func (s *Store) UserAdd(b engine.Batch, r *pb.AuthUserAddRequest) error {
	if r.Name == "" {
		return ErrUserEmpty
	}
	if s.next.users[r.Name] != nil {
		return ErrUserAlreadyExist
	}
	u := &authpb.User{Name: []byte(r.Name), Options: r.Options}
	if u.Options == nil {
		u.Options = &authpb.UserAddOptions{}
	}
	if !u.Options.NoPassword {
		var err error
		if u.Password, err = storedHash(r.Password, r.HashedPassword); err != nil {
			return err
		}
	}
	if err := s.putUser(b, u); err != nil {
		return err
	}
	s.commit(b)
	return nil
}

// UserDelete deletes a user and its tokens.
func (s *Store) UserDelete(b engine.Batch, name string) error {
	if s.next.enabled && name == Root {
		return ErrInvalidAuthMgmt
	}
	if s.next.users[name] == nil {
		return ErrUserNotFound
	}
	b.Delete(engine.AuthUsers.K([]byte(name)))
	delete(s.change().users, name)
	s.commit(b)
	s.tokens.forget(name)
	return nil
}

// UserChangePassword replaces the hash of the password and revokes the user's
// tokens. A user without a password still has none afterwards.
func (s *Store) UserChangePassword(b engine.Batch, r *pb.AuthUserChangePasswordRequest) error {
	a := s.next.users[r.Name]
	if a == nil {
		return ErrUserNotFound
	}
	u := &authpb.User{Name: []byte(r.Name), Roles: a.user.Roles, Options: a.user.Options}
	if !a.user.Options.GetNoPassword() {
		var err error
		if u.Password, err = storedHash(r.Password, r.HashedPassword); err != nil {
			return err
		}
	}
	if err := s.putUser(b, u); err != nil {
		return err
	}
	s.commit(b)
	s.tokens.forget(r.Name)
	return nil
}

// UserGrantRole grants the user a role, which must exist unless it is root. Granting
// a role twice is no error and changes nothing.
func (s *Store) UserGrantRole(b engine.Batch, user, role string) error {
	a := s.next.users[user]
	if a == nil {
		return ErrUserNotFound
	}
	if role != Root && s.next.roles[role] == nil {
		return ErrRoleNotFound
	}
	if slices.Contains(a.user.Roles, role) {
		return nil
	}
	u := proto.Clone(a.user).(*authpb.User)
	u.Roles = append(u.Roles, role)
	slices.Sort(u.Roles)
	if err := s.putUser(b, u); err != nil {
		return err
	}
	s.commit(b)
	return nil
}

// UserRevokeRole revokes a role of the user.
func (s *Store) UserRevokeRole(b engine.Batch, user, role string) error {
	if s.next.enabled && user == Root && role == Root {
		return ErrInvalidAuthMgmt
	}
	a := s.next.users[user]
	if a == nil {
		return ErrUserNotFound
	}
	if !slices.Contains(a.user.Roles, role) {
		return ErrRoleNotGranted
	}
	if err := s.putUser(b, without(a.user, role)); err != nil {
		return err
	}
	s.commit(b)
	return nil
}

func without(u *authpb.User, role string) *authpb.User {
	return &authpb.User{Name: u.Name, Password: u.Password, Options: u.Options,
		Roles: slices.DeleteFunc(slices.Clone(u.Roles), func(r string) bool { return r == role })}
}

// RoleAdd adds a role without permissions.
func (s *Store) RoleAdd(b engine.Batch, name string) error {
	if name == "" {
		return ErrRoleEmpty
	}
	if s.next.roles[name] != nil {
		return ErrRoleAlreadyExist
	}
	if err := s.putRole(b, &authpb.Role{Name: []byte(name)}); err != nil {
		return err
	}
	s.commit(b)
	return nil
}

// RoleDelete deletes a role and revokes it from all users.
func (s *Store) RoleDelete(b engine.Batch, name string) error {
	if s.next.enabled && name == Root {
		return ErrInvalidAuthMgmt
	}
	if s.next.roles[name] == nil {
		return ErrRoleNotFound
	}
	b.Delete(engine.AuthRoles.K([]byte(name)))
	st := s.change()
	delete(st.roles, name)
	for _, user := range st.Users() {
		if a := st.users[user]; slices.Contains(a.user.Roles, name) {
			if err := s.putUser(b, without(a.user, name)); err != nil {
				return err
			}
		}
	}
	s.commit(b)
	return nil
}

// byKey sorts permissions as etcd does. The sort is not stable, so the order of
// permissions with equal keys depends on the algorithm: it must be this one.
type byKey []*authpb.Permission

func (p byKey) Len() int           { return len(p) }
func (p byKey) Less(i, j int) bool { return bytes.Compare(p[i].Key, p[j].Key) < 0 }
func (p byKey) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }

// RoleGrantPermission adds a permission to the role, or changes the type of the
// existing one on the same range. As in etcd, it compares only the first permission
// with the same key, so one on an equal range after that is added again.
func (s *Store) RoleGrantPermission(b engine.Batch, role string, p *authpb.Permission) error {
	if p == nil {
		return ErrPermissionNotGiven
	}
	if !validRange(p.Key, p.RangeEnd) {
		return ErrInvalidAuthMgmt
	}
	old := s.next.roles[role]
	if old == nil {
		return ErrRoleNotFound
	}
	r := proto.Clone(old).(*authpb.Role)
	perms := r.KeyPermission
	i := sort.Search(len(perms), func(i int) bool { return bytes.Compare(perms[i].Key, p.Key) >= 0 })
	if i < len(perms) && bytes.Equal(perms[i].Key, p.Key) && bytes.Equal(perms[i].RangeEnd, p.RangeEnd) {
		perms[i].PermType = p.PermType
	} else {
		r.KeyPermission = append(perms, &authpb.Permission{Key: p.Key, RangeEnd: p.RangeEnd, PermType: p.PermType})
		sort.Sort(byKey(r.KeyPermission))
	}
	if err := s.putRole(b, r); err != nil {
		return err
	}
	s.commit(b)
	return nil
}

// RoleRevokePermission removes the permission on exactly this range from the role.
func (s *Store) RoleRevokePermission(b engine.Batch, role string, key, end []byte) error {
	old := s.next.roles[role]
	if old == nil {
		return ErrRoleNotFound
	}
	r := &authpb.Role{Name: old.Name}
	for _, p := range old.KeyPermission {
		if !bytes.Equal(p.Key, key) || !bytes.Equal(p.RangeEnd, end) {
			r.KeyPermission = append(r.KeyPermission, p)
		}
	}
	if len(r.KeyPermission) == len(old.KeyPermission) {
		return ErrPermissionNotGranted
	}
	if err := s.putRole(b, r); err != nil {
		return err
	}
	s.commit(b)
	return nil
}
