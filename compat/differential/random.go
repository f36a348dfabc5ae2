package differential

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// randomOp is an operation generated from the seed.
type randomOp struct {
	op
	restart bool   // kill and restart the servers instead
	web     string // method and path of a request to the peer port instead
	// uneven marks operations that members of etcd 3.5 and 3.6 decide differently among themselves if one of them
	// proposes them.
	uneven bool
}

// chance generates random operations of all services. Names and numbers are few, so that requests collide. It
// leaves out what crashes a real server (an alarm with an unknown action, a member update without URLs, a put of
// what the same transaction has deleted with an open end) and what time decides (leases that expire).
type chance struct {
	*rand.Rand
	states bool // only operations that change the state, for clusters whose state is compared
}

// knownHash is the hash of "new".
var knownHash = base64.StdEncoding.EncodeToString([]byte("$2a$04$LiE1NPni7HuR5cavDtg.keiVeI1fohci7Bg6vCgmBhzemNbdOvTCa"))

func randomOps(seed uint64, n int, states bool) []randomOp {
	c := &chance{Rand: rand.New(rand.NewPCG(seed, 7)), states: states}
	var ops []randomOp
	if c.yes(2) { // enough equal values that their order matters
		for _, i := range c.Perm(30) {
			ops = append(ops, c.call("KV/Put", &pb.PutRequest{Key: fmt.Appendf(nil, "k%02d", i), Value: c.value()}, "", false))
		}
	}
	if c.IntN(3) > 0 {
		ops = append(ops, c.withUsers()...)
	}
	for len(ops) < n {
		o := c.next()
		ops = append(ops, o)
		if o.restart {
			ops = append(ops, c.logins()...)
		}
	}
	return ops
}

// withUsers starts with users of different rights, and with authentication enabled.
func (c *chance) withUsers() (ops []randomOp) {
	add := func(method string, m proto.Message) { ops = append(ops, c.call("Auth/"+method, m, "root", false)) }
	for _, u := range []string{"root", "u", "v"} {
		add("UserAdd", &pb.AuthUserAddRequest{Name: u, Password: u})
		add("RoleAdd", &pb.AuthRoleAddRequest{Name: u})
		add("UserGrantRole", &pb.AuthUserGrantRoleRequest{User: u, Role: u})
	}
	for range 2 + c.IntN(4) {
		add("RoleGrantPermission", &pb.AuthRoleGrantPermissionRequest{Name: c.pick("u", "v"), Perm: c.permission()})
	}
	for range c.IntN(20) {
		ops = append(ops, c.call("KV/Put", c.put(), "root", false))
	}
	add("AuthEnable", &pb.AuthEnableRequest{})
	return append(ops, c.logins()...)
}

func (c *chance) logins() (ops []randomOp) {
	for _, u := range []string{"root", "u", "v"} {
		ops = append(ops, c.call("Auth/Authenticate", &pb.AuthenticateRequest{Name: u, Password: u}, "", false))
	}
	return ops
}

func (c *chance) pick(s ...string) string { return s[c.IntN(len(s))] }
func (c *chance) yes(in int) bool         { return c.IntN(in) == 0 }

func (c *chance) key() []byte {
	switch c.IntN(16) {
	case 0:
		return []byte(c.pick("", "\x00", "z", "a\x00", "\xff"))
	case 1, 2, 3, 4:
		return fmt.Appendf(nil, "k%02d", c.IntN(30))
	}
	return []byte(c.pick("a", "b", "c", "d", "e"))
}

func (c *chance) end() []byte {
	switch c.IntN(6) {
	case 0, 1:
		return nil
	case 2:
		return []byte{0}
	case 3:
		return []byte(c.pick("k", "l", "z"))
	}
	return c.key()
}

func (c *chance) value() []byte { return []byte(c.pick("", "x", "y", "w0", "w1", "w2")) }

func (c *chance) leaseID() int64 {
	if c.yes(3) {
		return int64(1 + c.IntN(4))
	}
	return 0
}

func (c *chance) revision() int64 {
	switch c.IntN(6) {
	case 0:
		return int64(c.IntN(60))
	case 1:
		return []int64{-1, -1, -2, 1, 2, math.MaxInt64, math.MinInt64}[c.IntN(7)]
	}
	return 0
}

func (c *chance) limit() int64 {
	if c.yes(20) {
		return []int64{-1, math.MaxInt64, math.MinInt64}[c.IntN(3)]
	}
	return int64(max(0, c.IntN(12)-3))
}

func (c *chance) rng() *pb.RangeRequest {
	r := &pb.RangeRequest{Key: c.key(), RangeEnd: c.end(), Revision: c.revision(), Limit: c.limit(), Serializable: c.yes(3),
		KeysOnly: c.yes(5), CountOnly: c.yes(8)}
	if c.yes(2) {
		r.Key, r.RangeEnd = []byte("k"), []byte("l")
	}
	if c.yes(2) {
		r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(c.IntN(3)), pb.RangeRequest_SortTarget(c.IntN(5))
	}
	if c.yes(30) {
		r.SortOrder, r.SortTarget = pb.RangeRequest_SortOrder(c.IntN(6)-2), pb.RangeRequest_SortTarget(c.IntN(8)-1)
	}
	if c.yes(6) {
		r.MinModRevision, r.MaxModRevision = c.revision(), c.revision()
		r.MinCreateRevision, r.MaxCreateRevision = c.revision(), c.revision()
	}
	return r
}

func (c *chance) put() *pb.PutRequest {
	r := &pb.PutRequest{Key: c.key(), Value: c.value(), Lease: c.leaseID(), PrevKv: c.yes(4)}
	if c.yes(4) {
		r.Key = fmt.Appendf(nil, "k%02d", c.IntN(30))
	}
	if c.yes(6) {
		r.IgnoreValue, r.Value = true, nil
	}
	if c.yes(6) {
		r.IgnoreLease, r.Lease = true, 0
	}
	if c.yes(25) {
		r.IgnoreValue, r.IgnoreLease = true, true
	}
	return r
}

func (c *chance) del() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: c.key(), RangeEnd: c.end(), PrevKv: c.yes(3)}
}

func (c *chance) txn(depth int, deletes bool) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	if c.yes(8) { // which of two missing things is named
		p := &pb.PutRequest{Key: c.key(), IgnoreValue: true, Lease: int64(1 + c.IntN(4))}
		r.Success = []*pb.RequestOp{opPut(p)}
		return r
	}
	for range c.IntN(3) {
		x := &pb.Compare{Key: c.key(), Target: pb.Compare_CompareTarget(c.IntN(5)), Result: pb.Compare_CompareResult(c.IntN(4))}
		if c.yes(2) {
			x.RangeEnd = c.end()
		}
		switch c.IntN(6) {
		case 0:
			x.TargetUnion = &pb.Compare_Version{Version: int64(c.IntN(3))}
		case 1:
			x.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: int64(c.IntN(40))}
		case 2:
			x.TargetUnion = &pb.Compare_ModRevision{ModRevision: int64(c.IntN(40))}
		case 3:
			x.TargetUnion = &pb.Compare_Value{Value: c.value()}
		case 4:
			x.TargetUnion = &pb.Compare_Lease{Lease: c.leaseID()}
		}
		if c.yes(40) {
			x.Result, x.Target = 9, 9
		}
		r.Compare = append(r.Compare, x)
	}
	list := func() (ops []*pb.RequestOp) {
		for range c.IntN(4) {
			switch n := c.IntN(10); {
			case n < 4:
				ops = append(ops, opRange(c.rng()))
			case n < 7:
				ops = append(ops, opPut(c.put()))
			case n < 9 && deletes:
				d := c.del()
				if string(d.RangeEnd) == "\x00" {
					d.RangeEnd = []byte("z")
				}
				ops = append(ops, opDelete(d))
			case depth > 0:
				ops = append(ops, opTxn(c.txn(depth-1, deletes)))
			}
		}
		if c.yes(60) {
			ops = append(ops, &pb.RequestOp{})
		}
		return ops
	}
	r.Success, r.Failure = list(), list()
	return r
}

func (c *chance) permission() *authpb.Permission {
	p := &authpb.Permission{PermType: authpb.Permission_Type(c.IntN(3)), Key: c.key(), RangeEnd: c.end()}
	if c.yes(30) {
		p.PermType = 7
	}
	return p
}

// user is the caller: none, one with a token, or one whose token may be stale.
func (c *chance) user() string { return c.pick("root", "root", "root", "u", "u", "v", "") }

func (c *chance) next() randomOp {
	user := c.user()
	damage := c.yes(15)
	for {
		switch n := c.IntN(100); {
		case n < 12 && !c.states:
			return c.call("KV/Range", c.rng(), user, damage)
		case n < 14 && !c.states:
			r := c.rng()
			if r.SortOrder == pb.RangeRequest_NONE {
				r.SortTarget = pb.RangeRequest_KEY // etcd repeats and omits keys
			}
			return c.stream(r, user)
		case n < 16 && !c.states:
			return c.watch(user)
		case n >= 16 && n < 32:
			return c.call("KV/Put", c.put(), user, damage)
		case n < 37:
			return c.call("KV/DeleteRange", c.del(), user, damage)
		case n < 52:
			deletes := c.yes(2)
			return c.call("KV/Txn", c.txn(2, deletes), user, damage && !deletes)
		case n < 54:
			return c.call("KV/Compact", &pb.CompactionRequest{Revision: int64(c.IntN(50) - 1), Physical: c.yes(2)}, "root", false)
		case n < 62:
			return c.leases(user, damage)
		case n < 82:
			return c.auth(user, damage)
		case n < 90:
			u := c.pick("root", "u", "v", "w")
			return c.call("Auth/Authenticate", &pb.AuthenticateRequest{Name: u, Password: c.pick(u, u, u, u, "", "new", "x")}, "", damage)
		case n < 98:
			return c.maintenance(user)
		case n < 99 && !c.states:
			return c.cluster(user)
		case c.yes(2):
			return randomOp{op: op{name: "restart"}, restart: true}
		case !c.states:
			web := c.pick("GET", "GET", "POST", "PUT") + " " + c.pick("/members", "/members", "/members/", "/members/promote/", "/members/promote/1", "/members/promote/x", "/members/promote", "/members/hashkv", "/version", "/downgrade/enabled", "/")
			return randomOp{op: op{name: "peer port: " + web}, web: web}
		}
	}
}

func (c *chance) leases(user string, damage bool) randomOp {
	id := int64(1 + c.IntN(4))
	switch n := c.IntN(8); {
	case n < 4:
		return c.call("Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: id, TTL: []int64{1000, 5000, 1 << 33, 9_000_000_001, math.MaxInt64}[min(c.IntN(12), 4)]}, user, false)
	case n < 5:
		return c.call("Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: id - 1}, user, damage)
	case c.states:
		return c.call("Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: id}, user, damage)
	case n < 6:
		return c.call("Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: id, Keys: c.yes(2)}, user, false)
	case n < 7:
		return c.call("Lease/LeaseLeases", &pb.LeaseLeasesRequest{}, user, damage)
	}
	return c.op("LeaseKeepAlive "+fmt.Sprint(id), user, func(ctx context.Context, s *session) answer { return s.keepAlive(ctx, id) })
}

func (c *chance) auth(user string, damage bool) randomOp {
	name, role := c.pick("u", "u", "v", "w", "root"), c.pick("u", "u", "v", "r", "root")
	if c.yes(40) {
		name = ""
	}
	call := func(method string, m proto.Message) randomOp { return c.call("Auth/"+method, m, user, damage) }
	switch c.IntN(16) {
	case 0, 1:
		r := &pb.AuthUserAddRequest{Name: c.pick("v", "w", "root", "u"), Password: name}
		if c.yes(3) {
			r.Options = &authpb.UserAddOptions{NoPassword: c.yes(2)}
		}
		if c.yes(4) {
			r.Password, r.HashedPassword = "", c.pick(knownHash, "!", "b2xk", "")
		}
		return call("UserAdd", r)
	case 2:
		return call("UserDelete", &pb.AuthUserDeleteRequest{Name: c.pick("v", "w", "u", name)})
	case 3, 4:
		r := &pb.AuthUserChangePasswordRequest{Name: c.pick("u", "v", "w"), Password: c.pick("u", "new", "", "")}
		if c.yes(2) {
			r.HashedPassword = c.pick(knownHash, "!", "b2xk")
		}
		return call("UserChangePassword", r)
	case 5, 6:
		return call("UserGrantRole", &pb.AuthUserGrantRoleRequest{User: name, Role: role})
	case 7:
		return call("UserRevokeRole", &pb.AuthUserRevokeRoleRequest{Name: c.pick("u", "v", "w"), Role: role})
	case 8:
		return call("RoleAdd", &pb.AuthRoleAddRequest{Name: role})
	case 9:
		return call("RoleDelete", &pb.AuthRoleDeleteRequest{Role: c.pick("v", "r", "s")})
	case 10, 11, 12:
		r := &pb.AuthRoleGrantPermissionRequest{Name: role, Perm: c.permission()}
		if c.yes(25) {
			r.Perm = nil
		}
		return call("RoleGrantPermission", r)
	case 13:
		return call("RoleRevokePermission", &pb.AuthRoleRevokePermissionRequest{Role: role, Key: c.key(), RangeEnd: c.end()})
	case 14:
		if c.yes(3) {
			return call("AuthDisable", &pb.AuthDisableRequest{})
		}
		return call("AuthEnable", &pb.AuthEnableRequest{})
	}
	switch c.IntN(5) {
	case 0:
		return call("UserGet", &pb.AuthUserGetRequest{Name: name})
	case 1:
		return call("UserList", &pb.AuthUserListRequest{})
	case 2:
		return call("RoleGet", &pb.AuthRoleGetRequest{Role: role})
	case 3:
		return call("RoleList", &pb.AuthRoleListRequest{})
	}
	return call("AuthStatus", &pb.AuthStatusRequest{})
}

func (c *chance) maintenance(user string) randomOp {
	call := func(method string, m proto.Message) randomOp { return c.call("Maintenance/"+method, m, user, false) }
	switch n := c.IntN(12); {
	case n < 2 && c.states: // 3.5 crashes at types that it does not know
		return call("Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: uint64(c.IntN(3)), Alarm: pb.AlarmType(c.IntN(3))})
	case n < 2:
		return call("Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: uint64(c.IntN(3)), Alarm: pb.AlarmType(c.IntN(4) * c.IntN(2))})
	case n < 6:
		return call("Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: uint64(c.IntN(3)), Alarm: pb.AlarmType(1 + c.IntN(3))})
	case c.states:
		return call("Alarm", &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: uint64(c.IntN(3)), Alarm: pb.AlarmType(1 + c.IntN(2))})
	case n < 7:
		return call("Alarm", &pb.AlarmRequest{MemberID: uint64(c.IntN(3)), Alarm: pb.AlarmType(c.IntN(4))})
	case n < 10:
		return call("HashKV", &pb.HashKVRequest{Revision: c.revision()})
	case n < 11:
		return call("Hash", &pb.HashRequest{})
	}
	return c.call("Maintenance/"+c.pick("Downgrade", "MoveLeader"), nil, user, false)
}

func (c *chance) cluster(user string) randomOp {
	call := func(method string, m proto.Message) randomOp { return c.call("Cluster/"+method, m, user, false) }
	switch c.IntN(5) {
	case 0:
		return call("MemberAdd", &pb.MemberAddRequest{PeerURLs: []string{c.pick("http://127.0.0.1:2380", "x", "ftp://a:1", "http://a")}, IsLearner: c.yes(2)})
	case 1:
		return call("MemberRemove", &pb.MemberRemoveRequest{ID: uint64(c.IntN(5))})
	case 2:
		return call("MemberUpdate", &pb.MemberUpdateRequest{ID: uint64(c.IntN(5)), PeerURLs: []string{"http://127.0.0.1:2380"}})
	case 3:
		return call("MemberPromote", &pb.MemberPromoteRequest{ID: uint64(c.IntN(5))})
	}
	return call("MemberList", &pb.MemberListRequest{Linearizable: c.yes(2)})
}

// op generates an operation in the name of a user.
func (c *chance) op(name, user string, do func(ctx context.Context, s *session) answer) randomOp {
	if user != "" {
		name = "as " + user + ": " + name
	}
	return randomOp{op: op{name, func(ctx context.Context, s *session) answer {
		if t := s.tokens[user]; t != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "token", t)
		}
		return do(ctx, s)
	}}}
}

// method returns the descriptor of a call such as KV/Put.
func method(name string) protoreflect.MethodDescriptor {
	service, m, _ := strings.Cut(name, "/")
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("etcdserverpb." + service))
	if err != nil {
		panic(err) // a name in this file
	}
	return d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(m))
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return t.New().Interface()
}

// call generates a call, whose bytes may be damaged on the way. Without a message it sends random fields.
func (c *chance) call(name string, m proto.Message, user string, damage bool) randomOp {
	d := method(name)
	if m == nil {
		m = newMessage(d.Input())
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			switch f := fields.Get(i); f.Kind() {
			case protoreflect.Uint64Kind:
				m.ProtoReflect().Set(f, protoreflect.ValueOfUint64(uint64(c.IntN(3))))
			case protoreflect.StringKind:
				m.ProtoReflect().Set(f, protoreflect.ValueOfString(c.pick("3.6", "3.5.0", "3.8", "x", "")))
			}
		}
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(err) // generated here, from valid texts
	}
	text := name + " {" + strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(m)), " ") + "}"
	if damage && len(data) > 0 {
		data = c.damaged(data)
		text = fmt.Sprintf("%s damaged %q", name, data)
	}
	o := c.op(text, user, func(ctx context.Context, s *session) answer {
		out := newMessage(d.Output())
		err := s.conn.Invoke(ctx, "/etcdserverpb."+name, rawBytes(data), out, grpc.ForceCodec(rawCodec{}))
		return s.outcome(m, out, err)
	})
	if t, ok := m.(*pb.TxnRequest); ok {
		o.uneven = damage || reads(t)
	}
	return o
}

// reads reports whether a transaction contains a range.
func reads(t *pb.TxnRequest) bool {
	return slices.ContainsFunc(slices.Concat(t.Success, t.Failure), func(o *pb.RequestOp) bool {
		return o.GetRequestRange() != nil || o.GetRequestTxn() != nil && reads(o.GetRequestTxn())
	})
}

func (c *chance) damaged(data []byte) []byte {
	data = bytes.Clone(data)
	for range 1 + c.IntN(2) {
		data[c.IntN(len(data))] = byte(c.IntN(256))
	}
	if c.yes(2) {
		data = data[:c.IntN(len(data)+1)]
	}
	return data
}

// outcome is the answer to a call, without the parts that may legitimately differ.
func (s *session) outcome(req, resp proto.Message, err error) answer {
	switch r := resp.(type) {
	case *pb.AuthenticateResponse:
		if err == nil {
			if q := req.(*pb.AuthenticateRequest); q.Name != "" {
				s.tokens[q.Name] = r.Token
			}
		}
	case *pb.LeaseTimeToLiveResponse:
		return s.leaseAnswer(r, err)
	case *pb.LeaseLeasesResponse:
		slices.SortFunc(r.Leases, func(a, b *pb.LeaseStatus) int { return int(a.ID - b.ID) })
	case *pb.AlarmResponse:
		slices.SortFunc(r.Alarms, func(a, b *pb.AlarmMember) int {
			return int(a.MemberID)*8 + int(a.Alarm) - int(b.MemberID)*8 - int(b.Alarm)
		})
	}
	return s.answerOf(resp, err)
}

// ask sends a request to the peer port of a server.
func ask(ctx context.Context, url, web string) answer {
	method, path, _ := strings.Cut(web, " ")
	req, err := http.NewRequestWithContext(ctx, method, url+path, nil)
	if err != nil {
		return failed(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return answer{{"error", "an error"}} // its text names the port
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	var a answer
	a.add("status", "%s", resp.Status)
	a.add("type", "%s", resp.Header.Get("Content-Type"))
	if path == "/version" {
		body = nil // ours reports that it is Quorate
	}
	a.add("body", "%s, %v", quote(body), err)
	return a
}

func (c *chance) stream(r *pb.RangeRequest, user string) randomOp {
	return c.op(describe("RangeStream", r), user, func(ctx context.Context, s *session) answer { return s.rangeStream(ctx, r) })
}

// watch reads the history once: what a watcher gets until it has caught up.
func (c *chance) watch(user string) randomOp {
	r := &pb.WatchCreateRequest{Key: c.key(), RangeEnd: c.end(), StartRevision: c.revision(), PrevKv: c.yes(2), Fragment: c.yes(3), WatchId: int64(c.IntN(3))}
	if c.yes(3) {
		r.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_FilterType(c.IntN(2))}
	}
	return c.op(describe("Watch", r), user, func(ctx context.Context, s *session) answer {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		st, err := s.watch.Watch(ctx)
		if err != nil {
			return failed(err)
		}
		w := newWatchStream(st, cancel)
		go w.collect()
		if err := st.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
			return failed(err)
		}
		ask := func() {
			_ = st.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
		}
		err = w.await(ctx, func() bool { return w.created > 0 || len(w.canceled) > 0 }, nil)
		if err == nil {
			ask()
			err = w.await(ctx, func() bool { return w.progress >= s.rev || len(w.canceled) > 0 }, ask)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		a := s.watchAnswer(w.pending)
		if err != nil && status.Code(err) != codes.DeadlineExceeded && !errors.Is(err, context.DeadlineExceeded) {
			a = append(a, failed(err)...) // progress may depend on a start in the future
		}
		return a
	})
}
