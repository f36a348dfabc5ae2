package ctl

import (
	"fmt"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Output about users and roles in the various formats.

func (f forward) done(_ string, r any) error                              { return f.to(r) }
func (f forward) authStatus(r *clientv3.AuthStatusResponse) error         { return f.to(r) }
func (f forward) userGet(_ string, r *clientv3.AuthUserGetResponse) error { return f.to(r) }
func (f forward) userList(r *clientv3.AuthUserListResponse) error         { return f.to(r) }
func (f forward) roleGet(_ string, r *clientv3.AuthRoleGetResponse) error { return f.to(r) }
func (f forward) roleList(r *clientv3.AuthRoleListResponse) error         { return f.to(r) }

func (p *simplePrinter) done(text string, _ any) error {
	p.line("%s", text)
	return nil
}

func (p *simplePrinter) authStatus(r *clientv3.AuthStatusResponse) error {
	p.line("Authentication Status: %v", (*pb.AuthStatusResponse)(r).GetEnabled())
	p.line("AuthRevision: %d", (*pb.AuthStatusResponse)(r).GetAuthRevision())
	return nil
}

func (p *simplePrinter) userGet(user string, r *clientv3.AuthUserGetResponse) error {
	p.line("User: %s", user)
	fmt.Fprint(p.stdout, "Roles:")
	for _, role := range (*pb.AuthUserGetResponse)(r).GetRoles() {
		fmt.Fprintf(p.stdout, " %s", role)
	}
	p.line("")
	return nil
}

func (p *simplePrinter) userList(r *clientv3.AuthUserListResponse) error {
	p.names((*pb.AuthUserListResponse)(r).GetUsers())
	return nil
}

func (p *simplePrinter) roleList(r *clientv3.AuthRoleListResponse) error {
	p.names((*pb.AuthRoleListResponse)(r).GetRoles())
	return nil
}

func (p *simplePrinter) names(names []string) {
	for _, n := range names {
		p.line("%s", n)
	}
}

// roleGet lists the keys that may be read, then those that may be written. Older servers do
// not report that the role root has all permissions.
func (p *simplePrinter) roleGet(role string, r *clientv3.AuthRoleGetResponse) error {
	perms := (*pb.AuthRoleGetResponse)(r).GetPerm()
	if role == "root" && perms == nil {
		perms = []*authpb.Permission{{PermType: authpb.Permission_READWRITE, RangeEnd: []byte{0}}}
	}
	p.line("Role %s", role)
	for _, one := range []struct {
		heading string
		kind    authpb.Permission_Type
	}{{"KV Read:", authpb.Permission_READ}, {"KV Write:", authpb.Permission_WRITE}} {
		p.line("%s", one.heading)
		for _, perm := range perms {
			if kind := perm.GetPermType(); kind == one.kind || kind == authpb.Permission_READWRITE {
				p.line("\t%s", rangeText(perm))
			}
		}
	}
	return nil
}

func rangeText(perm *authpb.Permission) string {
	key, end := string(perm.GetKey()), string(perm.GetRangeEnd())
	text := ""
	switch end {
	case "":
		return key
	case "\x00":
		text = fmt.Sprintf("[%s, <open ended>", key)
	default:
		text = fmt.Sprintf("[%s, %s)", key, end)
	}
	if key != "" && clientv3.GetPrefixRangeEnd(key) == end {
		text += fmt.Sprintf(" (prefix %s)", key)
	}
	return text
}

func (p *fieldsPrinter) done(_ string, r any) error {
	if m, ok := apiMessage(r).(interface{ GetHeader() *pb.ResponseHeader }); ok {
		p.header(m.GetHeader())
	}
	return nil
}

func (p *fieldsPrinter) roleGet(_ string, r *clientv3.AuthRoleGetResponse) error {
	resp := (*pb.AuthRoleGetResponse)(r)
	p.header(resp.GetHeader())
	for _, perm := range resp.GetPerm() {
		// Two spaces, as in etcdctl.
		fmt.Fprintf(p.stdout, "\"PermType\" :  %s\n", perm.GetPermType())
		p.quoted("Key", perm.GetKey())
		p.quoted("RangeEnd", perm.GetRangeEnd())
	}
	return nil
}

func (p *fieldsPrinter) roleList(r *clientv3.AuthRoleListResponse) error {
	resp := (*pb.AuthRoleListResponse)(r)
	p.header(resp.GetHeader())
	fmt.Fprint(p.stdout, `"Roles" :`)
	for _, role := range resp.GetRoles() {
		fmt.Fprintf(p.stdout, " %q", role)
	}
	fmt.Fprintln(p.stdout)
	return nil
}

// apiAuthMessage is apiMessage for users and roles.
func apiAuthMessage(r any) any {
	switch r := r.(type) {
	case *clientv3.AuthStatusResponse:
		return (*pb.AuthStatusResponse)(r)
	case *clientv3.AuthUserAddResponse:
		return (*pb.AuthUserAddResponse)(r)
	case *clientv3.AuthUserDeleteResponse:
		return (*pb.AuthUserDeleteResponse)(r)
	case *clientv3.AuthUserGetResponse:
		return (*pb.AuthUserGetResponse)(r)
	case *clientv3.AuthUserListResponse:
		return (*pb.AuthUserListResponse)(r)
	case *clientv3.AuthUserChangePasswordResponse:
		return (*pb.AuthUserChangePasswordResponse)(r)
	case *clientv3.AuthUserGrantRoleResponse:
		return (*pb.AuthUserGrantRoleResponse)(r)
	case *clientv3.AuthUserRevokeRoleResponse:
		return (*pb.AuthUserRevokeRoleResponse)(r)
	case *clientv3.AuthRoleAddResponse:
		return (*pb.AuthRoleAddResponse)(r)
	case *clientv3.AuthRoleDeleteResponse:
		return (*pb.AuthRoleDeleteResponse)(r)
	case *clientv3.AuthRoleGetResponse:
		return (*pb.AuthRoleGetResponse)(r)
	case *clientv3.AuthRoleListResponse:
		return (*pb.AuthRoleListResponse)(r)
	case *clientv3.AuthRoleGrantPermissionResponse:
		return (*pb.AuthRoleGrantPermissionResponse)(r)
	case *clientv3.AuthRoleRevokePermissionResponse:
		return (*pb.AuthRoleRevokePermissionResponse)(r)
	}
	return r
}
