package sim

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/internal/auth"
	"quorate/internal/ids"
	"quorate/internal/lease"
)

// Errors of the auth store, as clients see them.
var (
	errUserEmpty     = errors.New("auth: user name is empty")
	errUserNotFound  = errors.New("auth: user not found")
	errUserExists    = errors.New("auth: user already exists")
	errRoleNotFound  = errors.New("auth: role not found")
	errRoleExists    = errors.New("auth: role already exists")
	errNotGranted    = errors.New("auth: role is not granted to the user")
	errNoPermission  = errors.New("auth: permission is not granted to the role")
	errDenied        = errors.New("auth: permission denied")
	errOldRevision   = errors.New("auth: revision in header is old")
	errNoRoot        = errors.New("auth: root user does not exist")
	errRootNotRoot   = errors.New("auth: root user does not have root role")
	errInvalidChange = errors.New("auth: invalid auth management")
)

// isAuth reports whether an error is a decision about a user. Such a request had no effect.
func isAuth(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "auth: ") }

// rights are the users, roles and permissions of the model at one revision.
type rights struct {
	enabled  bool
	revision uint64
	users    map[string][]string // roles by user
	roles    map[string][]*authpb.Permission
}

func (r *rights) clone() *rights {
	c := *r
	c.users, c.roles = maps.Clone(r.users), maps.Clone(r.roles)
	return &c
}

func (r *rights) admin(user string) error {
	roles, there := r.users[user]
	switch {
	case !r.enabled:
		return nil
	case user == "":
		return errUserEmpty
	case !there:
		return errUserNotFound
	case !slices.Contains(roles, "root"):
		return errDenied
	}
	return nil
}

// may decides whether a user may read or write a range.
func (r *rights) may(kind authpb.Permission_Type, user string, rev uint64, key, end []byte) error {
	switch {
	case !r.enabled:
		return nil
	case rev == 0:
		return errUserEmpty
	case rev < r.revision:
		return errOldRevision
	case !slices.Contains(r.users[user], "root") && !r.covers(kind, user, string(key), string(end)):
		return errDenied
	}
	return nil
}

// covers looks at each point at which what a role permits may begin or end: all of the range
// is permitted if the keys there are.
func (r *rights) covers(kind authpb.Permission_Type, user, key, end string) bool {
	type span struct{ from, to string }
	spanOf := func(key, end string) span {
		if end == "" {
			return span{key, key + "\x00"}
		}
		return span{key, end}
	}
	want := spanOf(key, end)
	points, spans := []string{want.from}, []span(nil)
	for _, role := range r.users[user] {
		for _, p := range r.roles[role] {
			if p.PermType == kind || p.PermType == authpb.Permission_READWRITE {
				s := spanOf(string(p.Key), string(p.RangeEnd))
				spans, points = append(spans, s), append(points, s.from, s.to)
			}
		}
	}
	return !slices.ContainsFunc(points, func(at string) bool {
		return at >= want.from && at < want.to && !slices.ContainsFunc(spans, func(s span) bool { return s.from <= at && at < s.to })
	})
}

// permitted decides about a request of the log as every member must.
func (m *model) permitted(r *pb.InternalRaftRequest) error {
	user, rev := r.Header.GetUsername(), r.Header.GetAuthRevision()
	switch {
	case !m.auth.enabled:
		return nil
	case r.Put != nil:
		return m.mayPutAs(user, rev, r.Put)
	case r.Txn != nil:
		return m.mayRunAs(user, rev, r.Txn)
	case r.DeleteRange != nil:
		err := m.auth.may(authpb.Permission_WRITE, user, rev, r.DeleteRange.Key, r.DeleteRange.RangeEnd)
		if err == nil && r.DeleteRange.PrevKv {
			err = m.auth.may(authpb.Permission_READ, user, rev, r.DeleteRange.Key, r.DeleteRange.RangeEnd)
		}
		return err
	case r.LeaseRevoke != nil:
		return m.mayTouch(user, rev, lease.ID(r.LeaseRevoke.ID))
	case isChange(r):
		return m.auth.admin(user)
	}
	return nil
}

func (m *model) mayPutAs(user string, rev uint64, r *pb.PutRequest) error {
	if err := m.auth.may(authpb.Permission_WRITE, user, rev, r.Key, nil); err != nil {
		return err
	}
	if err := m.mayTouch(user, rev, lease.ID(r.Lease)); err != nil || !r.PrevKv {
		return err
	}
	return m.auth.may(authpb.Permission_READ, user, rev, r.Key, nil)
}

// mayTouch needs the right to write all keys of a lease.
func (m *model) mayTouch(user string, rev uint64, id lease.ID) error {
	if id == 0 || m.auth.admin(user) == nil {
		return nil
	}
	for _, kv := range m.at(m.rev, "", "\x00") {
		if lease.ID(kv.Lease) == id {
			if err := m.auth.may(authpb.Permission_WRITE, user, rev, kv.Key, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// mayRunAs needs the rights for the compares and for both branches.
func (m *model) mayRunAs(user string, rev uint64, t *pb.TxnRequest) error {
	for _, c := range t.Compare {
		if err := m.auth.may(authpb.Permission_READ, user, rev, c.Key, c.RangeEnd); err != nil {
			return err
		}
	}
	for _, op := range slices.Concat(t.Success, t.Failure) {
		var err error
		switch {
		case op.GetRequestRange() != nil:
			err = m.auth.may(authpb.Permission_READ, user, rev, op.GetRequestRange().Key, op.GetRequestRange().RangeEnd)
		case op.GetRequestPut() != nil:
			err = m.mayPutAs(user, rev, op.GetRequestPut())
		case op.GetRequestDeleteRange() != nil:
			d := op.GetRequestDeleteRange()
			if d.PrevKv {
				err = m.auth.may(authpb.Permission_READ, user, rev, d.Key, d.RangeEnd)
			}
			if err == nil {
				err = m.auth.may(authpb.Permission_WRITE, user, rev, d.Key, d.RangeEnd)
			}
		case op.GetRequestTxn() != nil:
			err = m.mayRunAs(user, rev, op.GetRequestTxn())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func isChange(r *pb.InternalRaftRequest) bool {
	return r.AuthEnable != nil || r.AuthUserAdd != nil || r.AuthUserDelete != nil || r.AuthUserGrantRole != nil || r.AuthUserRevokeRole != nil ||
		r.AuthRoleAdd != nil || r.AuthRoleDelete != nil || r.AuthRoleGrantPermission != nil || r.AuthRoleRevokePermission != nil
}

// change changes users and roles. Each state is kept, as a client may be judged by any
// between its request and its answer.
func (m *model) change(r *pb.InternalRaftRequest) answer {
	next, h := m.auth.clone(), &pb.ResponseHeader{Revision: int64(m.rev)}
	var (
		resp any
		err  error
	)
	same := false // nothing to do
	switch {
	case r.AuthEnable != nil:
		resp = &pb.AuthEnableResponse{Header: h}
		roles, there := next.users["root"]
		switch same = true; {
		case next.enabled:
		case !there:
			err = errNoRoot
		case !slices.Contains(roles, "root"):
			err = errRootNotRoot
		default: // counts no revision
			next.enabled = true
			m.auth, m.past = next, append(m.past, pastRights{m.index, next})
		}
	case r.AuthUserAdd != nil:
		resp = &pb.AuthUserAddResponse{Header: h}
		if _, there := next.users[r.AuthUserAdd.Name]; there {
			err = errUserExists
		}
		next.users[r.AuthUserAdd.Name] = nil
	case r.AuthUserDelete != nil:
		resp = &pb.AuthUserDeleteResponse{Header: h}
		if _, there := next.users[r.AuthUserDelete.Name]; next.enabled && r.AuthUserDelete.Name == "root" {
			err = errInvalidChange
		} else if !there {
			err = errUserNotFound
		}
		delete(next.users, r.AuthUserDelete.Name)
	case r.AuthUserGrantRole != nil:
		resp = &pb.AuthUserGrantRoleResponse{Header: h}
		q := r.AuthUserGrantRole
		same, err = next.grant(q.User, q.Role)
	case r.AuthUserRevokeRole != nil:
		resp = &pb.AuthUserRevokeRoleResponse{Header: h}
		q := r.AuthUserRevokeRole
		if roles, there := next.users[q.Name]; !there {
			err = errUserNotFound
		} else if !slices.Contains(roles, q.Role) {
			err = errNotGranted
		}
		next.take(q.Name, q.Role)
	default:
		resp, err = next.changeRole(r, h)
	}
	if err != nil {
		return answer{err: err}
	}
	if !same {
		next.revision++
		m.auth, m.past = next, append(m.past, pastRights{m.index, next})
	}
	return answer{resp: resp}
}

func (r *rights) grant(user, role string) (same bool, err error) {
	roles, there := r.users[user]
	if !there {
		return false, errUserNotFound
	}
	if _, there := r.roles[role]; !there && role != "root" {
		return false, errRoleNotFound
	}
	same = slices.Contains(roles, role)
	r.users[user] = append(slices.Clone(roles), role)
	return same, nil
}

func (r *rights) take(user, role string) {
	if roles, there := r.users[user]; there {
		r.users[user] = slices.DeleteFunc(slices.Clone(roles), func(x string) bool { return x == role })
	}
}

func (r *rights) changeRole(q *pb.InternalRaftRequest, h *pb.ResponseHeader) (any, error) {
	switch {
	case q.AuthRoleAdd != nil:
		if _, there := r.roles[q.AuthRoleAdd.Name]; there {
			return nil, errRoleExists
		}
		r.roles[q.AuthRoleAdd.Name] = nil
		return &pb.AuthRoleAddResponse{Header: h}, nil
	case q.AuthRoleDelete != nil:
		role := q.AuthRoleDelete.Role
		if _, there := r.roles[role]; !there {
			return nil, errRoleNotFound
		}
		delete(r.roles, role)
		for user := range r.users {
			r.take(user, role)
		}
		return &pb.AuthRoleDeleteResponse{Header: h}, nil
	case q.AuthRoleGrantPermission != nil:
		name, p := q.AuthRoleGrantPermission.Name, q.AuthRoleGrantPermission.Perm
		perms, there := r.roles[name]
		if !there {
			return nil, errRoleNotFound
		}
		r.roles[name] = add(perms, p)
		return &pb.AuthRoleGrantPermissionResponse{Header: h}, nil
	}
	w := q.AuthRoleRevokePermission
	perms, there := r.roles[w.Role]
	if !there {
		return nil, errRoleNotFound
	}
	left := drop(perms, &authpb.Permission{Key: w.Key, RangeEnd: w.RangeEnd})
	if len(left) == len(perms) {
		return nil, errNoPermission
	}
	r.roles[w.Role] = left
	return &pb.AuthRoleRevokePermissionResponse{Header: h}, nil
}

// add returns the permissions with one more. As in etcd, it takes the place of the first one
// that begins at the same key, if that is on the same range; any other on that range stays.
func add(perms []*authpb.Permission, p *authpb.Permission) []*authpb.Permission {
	perms = slices.Clone(perms)
	i := slices.IndexFunc(perms, func(x *authpb.Permission) bool { return string(x.Key) >= string(p.Key) })
	if i >= 0 && string(perms[i].Key) == string(p.Key) && string(perms[i].RangeEnd) == string(p.RangeEnd) {
		perms[i] = p
		return perms
	}
	perms = append(perms, p)
	sort.Slice(perms, func(i, j int) bool { return string(perms[i].Key) < string(perms[j].Key) })
	return perms
}

// drop returns the permissions without the one on the same range.
func drop(perms []*authpb.Permission, p *authpb.Permission) []*authpb.Permission {
	return slices.DeleteFunc(slices.Clone(perms), func(x *authpb.Permission) bool {
		return string(x.Key) == string(p.Key) && string(x.RangeEnd) == string(p.RangeEnd)
	})
}

// pastRights are the rights from an entry of the log on.
type pastRights struct {
	index ids.Index
	*rights
}

// everMay reports whether a user was permitted to read a range in some state from the one at
// index until now. A member that reads or sends later than at index is in one of these.
func (m *model) everMay(index ids.Index, user string, key, end []byte) bool {
	for i := len(m.past) - 1; i >= 0; i-- {
		r := m.past[i]
		if r.may(authpb.Permission_READ, user, max(r.revision, 1), key, end) == nil {
			return true
		}
		if r.index <= index {
			return false
		}
	}
	return false
}

// users of the workers. Root makes the changes, and what members do by themselves.
var workerUsers = []string{"u0", "u1", "u2", "root"}

// caller is the user of a request that comes to this member now.
func (n *node) caller(user string) auth.Info {
	if user == "" {
		return auth.Info{}
	}
	return auth.Info{User: user, Rev: n.auth.State().Revision()}
}

// someUser draws the user of a worker's request, none in a world without users.
func (w *World) someUser() string {
	if !w.faults.Auth {
		return ""
	}
	return workerUsers[w.rng.IntN(len(workerUsers))]
}

// root is the user of what must be permitted, none in a world without users.
func (w *World) root() string {
	if !w.faults.Auth {
		return ""
	}
	return "root"
}

// someChange returns the next change of users and roles: first those that enable
// authentication, then any.
func (c *worker) someChange() *pb.InternalRaftRequest {
	m, rng := c.w.model, c.w.rng
	role, user := fmt.Sprintf("r%d", rng.IntN(3)), workerUsers[rng.IntN(3)]
	_, hasRoot := m.auth.users["root"]
	_, hasRole := m.auth.roles[role]
	_, hasUser := m.auth.users[user]
	noPassword := &authpb.UserAddOptions{NoPassword: true}
	switch {
	case !hasRoot:
		return &pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: "root", Options: noPassword}}
	case !slices.Contains(m.auth.users["root"], "root"):
		return &pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}}
	case !hasUser:
		return &pb.InternalRaftRequest{AuthUserAdd: &pb.AuthUserAddRequest{Name: user, Options: noPassword}}
	case !hasRole:
		return &pb.InternalRaftRequest{AuthRoleAdd: &pb.AuthRoleAddRequest{Name: role}}
	case !m.auth.enabled && rng.IntN(3) == 0:
		return &pb.InternalRaftRequest{AuthEnable: &pb.AuthEnableRequest{}}
	}
	key, end := c.key(rng.IntN(sharedKeys)), []byte(nil)
	if rng.IntN(2) == 0 {
		key, end = c.key(0), []byte("u")
	}
	switch x := rng.IntN(12); {
	case x < 4:
		return &pb.InternalRaftRequest{AuthRoleGrantPermission: &pb.AuthRoleGrantPermissionRequest{Name: role,
			Perm: &authpb.Permission{Key: key, RangeEnd: end, PermType: authpb.Permission_Type(rng.IntN(3))}}}
	case x < 6:
		return &pb.InternalRaftRequest{AuthRoleRevokePermission: &pb.AuthRoleRevokePermissionRequest{Role: role, Key: key, RangeEnd: end}}
	case x < 9:
		return &pb.InternalRaftRequest{AuthUserGrantRole: &pb.AuthUserGrantRoleRequest{User: user, Role: role}}
	case x == 9:
		return &pb.InternalRaftRequest{AuthUserRevokeRole: &pb.AuthUserRevokeRoleRequest{Name: user, Role: role}}
	case x == 10:
		return &pb.InternalRaftRequest{AuthRoleDelete: &pb.AuthRoleDeleteRequest{Role: role}}
	}
	return &pb.InternalRaftRequest{AuthUserDelete: &pb.AuthUserDeleteRequest{Name: user}}
}

// recheckWatches cancels watchers whose users have lost the right to read, as package server
// does.
func (n *node) recheckWatches() {
	st := n.auth.State()
	if !st.Enabled() {
		return
	}
	n.hub.Recheck(func(owner string, key, end []byte) string {
		if err := st.CanRead(auth.Info{User: owner, Rev: st.Revision()}, key, end); err != nil {
			return err.Error()
		}
		return ""
	})
}
