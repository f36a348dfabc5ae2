package v2auth

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// Role is a role as clients send it and as it is stored.
type Role struct {
	Role        string       `json:"role"`
	Permissions Permissions  `json:"permissions"`
	Grant       *Permissions `json:"grant,omitempty"`
	Revoke      *Permissions `json:"revoke,omitempty"`
}

// Permissions are a role's permissions on keys, the only kind.
type Permissions struct {
	KV Patterns `json:"kv"`
}

// Empty reports whether p, which may be nil, grants nothing.
func (p *Permissions) Empty() bool {
	return p == nil || (len(p.KV.Read) == 0 && len(p.KV.Write) == 0)
}

// Patterns are keys or, with a * at the end, prefixes of keys. /a* covers /ab; /a/* does
// not cover /a.
type Patterns struct {
	Read  []string `json:"read"`
	Write []string `json:"write"`
}

func (p Patterns) list(write bool) []string {
	if write {
		return p.Write
	}
	return p.Read
}

// Allows reports whether the role covers a key. With recursive, only a pattern that also
// covers everything below the key counts.
func (r *Role) Allows(key string, write, recursive bool) bool {
	return r.Role == RootRole || slices.ContainsFunc(r.Permissions.KV.list(write), func(pattern string) bool {
		if start, ok := strings.CutSuffix(pattern, "*"); ok {
			return strings.HasPrefix(key, start)
		}
		return !recursive && pattern != "" && key == pattern
	})
}

// merge returns the role after the changes in r.
func (old Role) merge(r Role) (Role, error) {
	out := Role{Role: old.Role, Permissions: old.Permissions}
	if r.Grant != nil {
		read, dup := with(out.Permissions.KV.Read, r.Grant.KV.Read)
		if dup != nil {
			return Role{}, refuse(http.StatusConflict, "Granting duplicate read permission %s", *dup)
		}
		write, dup := with(out.Permissions.KV.Write, r.Grant.KV.Write)
		if dup != nil {
			return Role{}, refuse(http.StatusConflict, "Granting duplicate write permission %s", *dup)
		}
		out.Permissions.KV = Patterns{Read: read, Write: write}
	}
	if r.Revoke != nil { // revoking a pattern that was not granted is no error
		kv := out.Permissions.KV
		out.Permissions.KV = Patterns{Read: without(kv.Read, r.Revoke.KV.Read), Write: without(kv.Write, r.Revoke.KV.Write)}
	}
	return out, nil
}

// with adds patterns; dup is one that existed before.
func with(list, more []string) (_ []string, dup *string) {
	s := set(list)
	for _, p := range more {
		if s[p] {
			return nil, &p
		}
		s[p] = true
	}
	return sorted(s), nil
}

func without(list, less []string) []string {
	s := set(list)
	for _, p := range less {
		delete(s, p)
	}
	return sorted(s)
}

func set(list []string) map[string]bool {
	s := make(map[string]bool, len(list))
	for _, x := range list {
		s[x] = true
	}
	return s
}

// sorted never returns nil: changed lists are [] in JSON, not null.
func sorted(s map[string]bool) []string {
	out := slices.AppendSeq(make([]string, 0, len(s)), maps.Keys(s))
	slices.Sort(out)
	return out
}

// Authenticate returns the user with this name and password, or nil. An error means that it
// could not be determined.
func (s *Store) Authenticate(ctx context.Context, name, password string) (*User, error) {
	u, err := s.User(ctx, name)
	if isStatus(err, http.StatusNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ok, err := s.m.V2PasswordMatches(ctx, []byte(u.Password), password)
	if err != nil || !ok {
		return nil, err
	}
	return &u, nil
}

// Named returns the user with the name in a client certificate, or nil.
func (s *Store) Named(ctx context.Context, name string) (*User, error) {
	u, err := s.User(ctx, name)
	if isStatus(err, http.StatusNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &u, nil
}

// Allowed reports whether a user may read or write a key. A nil user is anonymous and has
// the permissions of the role guest. For a guest, recursive checks the key itself only, as
// in etcd.
func (s *Store) Allowed(ctx context.Context, u *User, key string, write, recursive bool) (bool, error) {
	roles := []string{GuestRole}
	if u != nil {
		roles = u.Roles
	} else {
		recursive = false
	}
	for _, name := range roles {
		r, err := s.Role(ctx, name)
		if isStatus(err, http.StatusNotFound) {
			continue
		}
		if err != nil {
			return false, err
		}
		if r.Allows(key, write, recursive) {
			return true, nil
		}
	}
	return false, nil
}
