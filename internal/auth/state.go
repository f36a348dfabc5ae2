package auth

import (
	"maps"
	"slices"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/authpb"
)

// State is the users, roles and permissions at one revision. A State that a reader
// got from a Store never changes.
type State struct {
	enabled  bool
	revision uint64
	users    map[string]*account
	roles    map[string]*authpb.Role
}

// account is one user. It is replaced, never modified, when the user or one of its
// roles changes. The union of its permissions is computed at first use.
type account struct {
	user   *authpb.User
	root   bool
	merged atomic.Pointer[permissions]
}

func newAccount(u *authpb.User) *account {
	return &account{user: u, root: slices.Contains(u.Roles, Root)}
}

// Enabled reports whether requests need a user.
func (s *State) Enabled() bool { return s.enabled }

// Revision counts the changes of users and roles.
func (s *State) Revision() uint64 { return s.revision }

// IsAdmin returns nil if who may make requests that need the role root. It does not
// compare the revision.
func (s *State) IsAdmin(who Info) error {
	if !s.enabled {
		return nil
	}
	if who.User == "" {
		return ErrUserEmpty
	}
	a := s.users[who.User]
	if a == nil {
		return ErrUserNotFound
	}
	if !a.root {
		return ErrPermissionDenied
	}
	return nil
}

// CanRead returns nil if who may read the keys from key to end: one key if end is
// empty, all keys from key on if end is "\x00".
func (s *State) CanRead(who Info, key, end []byte) error {
	if !s.enabled {
		return nil
	}
	return s.permit(who, func(p *permissions) bool { return p.read.cover(key, end) })
}

// CanWrite returns nil if who may put or delete the keys from key to end.
func (s *State) CanWrite(who Info, key, end []byte) error {
	if !s.enabled {
		return nil
	}
	return s.permit(who, func(p *permissions) bool { return p.write.cover(key, end) })
}

func (s *State) permit(who Info, covers func(*permissions) bool) error {
	switch {
	case who.Rev == 0:
		return ErrUserEmpty
	case who.Rev < s.revision:
		return ErrAuthOldRevision
	}
	a := s.users[who.User]
	if a == nil || !a.root && !covers(s.permissions(a)) {
		return ErrPermissionDenied
	}
	return nil
}

func (s *State) permissions(a *account) *permissions {
	if p := a.merged.Load(); p != nil {
		return p
	}
	var roles []*authpb.Role
	for _, name := range a.user.Roles {
		if r := s.roles[name]; r != nil {
			roles = append(roles, r)
		}
	}
	p := merge(roles)
	a.merged.Store(p)
	return p
}

// HasRole reports whether the user holds the role.
func (s *State) HasRole(user, role string) bool {
	a := s.users[user]
	return a != nil && slices.Contains(a.user.Roles, role)
}

// Password returns the bcrypt hash of the user's password.
func (s *State) Password(user string) ([]byte, error) {
	if !s.enabled {
		return nil, ErrAuthNotEnabled
	}
	a := s.users[user]
	switch {
	case a == nil:
		return nil, ErrAuthFailed
	case a.user.Options.GetNoPassword():
		return nil, ErrNoPasswordUser
	}
	return a.user.Password, nil
}

// Users returns the names of all users, sorted.
func (s *State) Users() []string { return slices.Sorted(maps.Keys(s.users)) }

// Roles returns the names of all roles, sorted.
func (s *State) Roles() []string { return slices.Sorted(maps.Keys(s.roles)) }

// RolesOf returns the roles of a user, sorted.
func (s *State) RolesOf(user string) ([]string, error) {
	a := s.users[user]
	if a == nil {
		return nil, ErrUserNotFound
	}
	return slices.Clone(a.user.Roles), nil
}

// Permissions returns the permissions of a role. The role root may access all keys,
// whatever is stored for it.
func (s *State) Permissions(role string) ([]*authpb.Permission, error) {
	r := s.roles[role]
	switch {
	case r == nil:
		return nil, ErrRoleNotFound
	case role == Root:
		return []*authpb.Permission{{PermType: authpb.Permission_READWRITE, Key: []byte{}, RangeEnd: []byte(openEnd)}}, nil
	}
	return slices.Clone(r.KeyPermission), nil
}

func (s *State) clone() *State {
	c := *s
	c.users, c.roles = maps.Clone(s.users), maps.Clone(s.roles)
	return &c
}
