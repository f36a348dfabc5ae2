package differential

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// The lock and election services are in etcd's server module, which this module does not import; their few
// messages are described here instead.
var lockFile, electionFile = describeFile("v3lockpb", map[string][]*descriptorpb.FieldDescriptorProto{
	"LockRequest":    {bytesField("name", 1), intField("lease", 2)},
	"LockResponse":   {messageField("header", 1, ".etcdserverpb.ResponseHeader"), bytesField("key", 2)},
	"UnlockRequest":  {bytesField("key", 1)},
	"UnlockResponse": {messageField("header", 1, ".etcdserverpb.ResponseHeader")},
}), describeFile("v3electionpb", map[string][]*descriptorpb.FieldDescriptorProto{
	"LeaderKey":        {bytesField("name", 1), bytesField("key", 2), intField("rev", 3), intField("lease", 4)},
	"CampaignRequest":  {bytesField("name", 1), intField("lease", 2), bytesField("value", 3)},
	"CampaignResponse": {messageField("header", 1, ".etcdserverpb.ResponseHeader"), messageField("leader", 2, ".v3electionpb.LeaderKey")},
	"LeaderRequest":    {bytesField("name", 1)},
	"LeaderResponse":   {messageField("header", 1, ".etcdserverpb.ResponseHeader"), messageField("kv", 2, ".mvccpb.KeyValue")},
	"ProclaimRequest":  {messageField("leader", 1, ".v3electionpb.LeaderKey"), bytesField("value", 2)},
	"ProclaimResponse": {messageField("header", 1, ".etcdserverpb.ResponseHeader")},
	"ResignRequest":    {messageField("leader", 1, ".v3electionpb.LeaderKey")},
	"ResignResponse":   {messageField("header", 1, ".etcdserverpb.ResponseHeader")},
})

func describedField(name string, n int32, kind descriptorpb.FieldDescriptorProto_Type) *descriptorpb.FieldDescriptorProto {
	return &descriptorpb.FieldDescriptorProto{
		Name: proto.String(name), Number: proto.Int32(n), Type: kind.Enum(),
		Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
}

func bytesField(name string, n int32) *descriptorpb.FieldDescriptorProto {
	return describedField(name, n, descriptorpb.FieldDescriptorProto_TYPE_BYTES)
}

func intField(name string, n int32) *descriptorpb.FieldDescriptorProto {
	return describedField(name, n, descriptorpb.FieldDescriptorProto_TYPE_INT64)
}

func messageField(name string, n int32, kind string) *descriptorpb.FieldDescriptorProto {
	f := describedField(name, n, descriptorpb.FieldDescriptorProto_TYPE_MESSAGE)
	f.TypeName = proto.String(kind)
	return f
}

func describeFile(pkg string, messages map[string][]*descriptorpb.FieldDescriptorProto) protoreflect.FileDescriptor {
	f := &descriptorpb.FileDescriptorProto{
		Name: proto.String(pkg + ".described.proto"), Package: proto.String(pkg), Syntax: proto.String("proto3"),
		Dependency: []string{pb.File_rpc_proto.Path(), mvccpb.File_kv_proto.Path()},
	}
	for name, fields := range messages {
		f.MessageType = append(f.MessageType, &descriptorpb.DescriptorProto{Name: proto.String(name), Field: fields})
	}
	fd, err := protodesc.NewFile(f, protoregistry.GlobalFiles)
	if err != nil {
		panic("differential: the described messages do not fit together: " + err.Error())
	}
	return fd
}

// dyn is a message of one of the described files with the given fields, by name.
func dyn(file protoreflect.FileDescriptor, name string, fields map[string]any) *dynamicpb.Message {
	d := file.Messages().ByName(protoreflect.Name(name))
	m := dynamicpb.NewMessage(d)
	for f, v := range fields {
		fd := d.Fields().ByName(protoreflect.Name(f))
		switch v := v.(type) {
		case string:
			m.Set(fd, protoreflect.ValueOfBytes([]byte(v)))
		case int64:
			m.Set(fd, protoreflect.ValueOfInt64(v))
		case *dynamicpb.Message:
			m.Set(fd, protoreflect.ValueOfMessage(v))
		}
	}
	return m
}

// lockCall adds a unary call of the lock or election service.
func lockCall(b *script, file protoreflect.FileDescriptor, service, method string, req *dynamicpb.Message) {
	name := "/" + string(file.Package()) + "." + service + "/" + method
	b.add(describe(name, req), func(ctx context.Context, s *session) answer {
		out := dyn(file, method+"Response", nil)
		err := s.conn.Invoke(ctx, name, req, out)
		s.headerOfDynamic(out)
		return s.answerOf(out, err)
	})
}

// headerOfDynamic records the revision of an answer that has no generated accessor.
func (s *session) headerOfDynamic(m *dynamicpb.Message) {
	fd := m.Descriptor().Fields().ByName("header")
	if fd == nil || !m.Has(fd) {
		return
	}
	h := m.Get(fd).Message()
	s.rev = max(s.rev, h.Get(h.Descriptor().Fields().ByName("revision")).Int())
}

// pending starts a call that is expected to block and that later operations complete.
type pending struct {
	done chan struct{}
	out  *dynamicpb.Message
	err  error
}

func locksSection(b *script) {
	calls := map[*session]*pending{}
	lock := func(name string, lease int64) {
		lockCall(b, lockFile, "Lock", "Lock", dyn(lockFile, "LockRequest", map[string]any{"name": name, "lease": lease}))
	}
	unlock := func(key string) {
		lockCall(b, lockFile, "Lock", "Unlock", dyn(lockFile, "UnlockRequest", map[string]any{"key": key}))
	}
	// begin starts a call that has to wait, and returns once its key shows that it does.
	begin := func(file protoreflect.FileDescriptor, service, method string, req *dynamicpb.Message, key string) {
		name := "/" + string(file.Package()) + "." + service + "/" + method
		b.add("begin "+describe(name, req), func(ctx context.Context, s *session) answer {
			p := &pending{done: make(chan struct{}), out: dyn(file, method+"Response", nil)}
			calls[s] = p
			cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
			go func() {
				defer cancel()
				p.err = s.conn.Invoke(cctx, name, req, p.out)
				close(p.done)
			}()
			return nil
		})
		b.until(key+" waits", func(ctx context.Context, s *session) (bool, error) {
			r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k(key)})
			return err == nil && r.Count == 1, err
		})
	}
	finish := func() {
		b.add("finish the waiting call", func(ctx context.Context, s *session) answer {
			p := calls[s]
			select {
			case <-p.done:
				return s.answerOf(p.out, p.err)
			case <-ctx.Done():
				return failed(ctx.Err())
			}
		})
	}
	leader := func(key string, rev, lease int64) *dynamicpb.Message {
		return dyn(electionFile, "LeaderKey", map[string]any{"name": "e", "key": key, "rev": rev, "lease": lease})
	}
	elect := func(method string, fields map[string]any) {
		request := method + "Request"
		lockCall(b, electionFile, "Election", method, dyn(electionFile, request, fields))
	}

	b.grant(0xa1, 600)
	b.grant(0xb2, 600)
	lock("l", 0xa1)
	lock("l", 0xa1)
	lock("l", 404)
	b.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	begin(lockFile, "Lock", "Lock", dyn(lockFile, "LockRequest", map[string]any{"name": "l", "lease": int64(0xb2)}), "l/b2")
	unlock("l/a1")
	finish()
	unlock("l/a1")
	unlock("l/b2")
	unlock("never")
	unlock("")
	lock("", 0xa1)
	b.rng(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	// A holder whose lease expires lets the next one in.
	lock("m", 0xa1)
	begin(lockFile, "Lock", "Lock", dyn(lockFile, "LockRequest", map[string]any{"name": "m", "lease": int64(0xb2)}), "m/b2")
	b.revoke(0xa1)
	finish()
	b.revoke(0xb2)

	b.grant(0xc3, 600)
	b.grant(0xd4, 600)
	elect("Leader", map[string]any{"name": "e"})
	elect("Proclaim", nil)
	elect("Resign", nil)
	elect("Campaign", map[string]any{"name": "e", "lease": int64(0xc3), "value": "first"})
	elect("Campaign", map[string]any{"name": "e", "lease": int64(0xc3), "value": "changed"})
	elect("Leader", map[string]any{"name": "e"})
	elect("Proclaim", map[string]any{"leader": leader("e/c3", 1, 0xc3), "value": "wrong revision"})
	begin(electionFile, "Election", "Campaign", dyn(electionFile, "CampaignRequest", map[string]any{"name": "e", "lease": int64(0xd4), "value": "second"}), "e/d4")
	b.add("Proclaim and Resign with the leader's own key", func(ctx context.Context, s *session) answer {
		l := dyn(electionFile, "LeaderResponse", nil)
		if err := s.conn.Invoke(ctx, "/v3electionpb.Election/Leader", dyn(electionFile, "LeaderRequest", map[string]any{"name": "e"}), l); err != nil {
			return failed(err)
		}
		kv := l.Get(l.Descriptor().Fields().ByName("kv")).Message()
		rev := kv.Get(kv.Descriptor().Fields().ByName("create_revision")).Int()
		own := leader("e/c3", rev, 0xc3)
		var a answer
		for _, method := range []string{"Proclaim", "Resign"} {
			fields := map[string]any{"leader": own}
			if method == "Proclaim" {
				fields["value"] = "proclaimed"
			}
			out := dyn(electionFile, method+"Response", nil)
			err := s.conn.Invoke(ctx, "/v3electionpb.Election/"+method, dyn(electionFile, method+"Request", fields), out)
			for _, f := range s.answerOf(out, err) {
				a = append(a, field{method + "." + f.path, f.value})
			}
		}
		return a
	})
	finish()
	elect("Leader", map[string]any{"name": "e"})
	elect("Resign", map[string]any{"leader": leader("e/c3", 1, 0xc3)})
	b.add("Observe first answer", func(ctx context.Context, s *session) answer {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		st, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/v3electionpb.Election/Observe")
		if err != nil {
			return failed(err)
		}
		if err := st.SendMsg(dyn(electionFile, "LeaderRequest", map[string]any{"name": "e"})); err != nil {
			return failed(err)
		}
		if err := st.CloseSend(); err != nil {
			return failed(err)
		}
		out := dyn(electionFile, "LeaderResponse", nil)
		err = st.RecvMsg(out)
		return s.answerOf(out, err)
	})
	observeSection(b)
	b.revoke(0xd4)
	elect("Leader", map[string]any{"name": "e"})

	// A caller that goes away while it waits has its key removed.
	b.grant(0xe5, 600)
	b.grant(0xf6, 600)
	lock("g", 0xe5)
	elect("Campaign", map[string]any{"name": "h", "lease": int64(0xe5), "value": "first"})
	gone := func(file protoreflect.FileDescriptor, service, method, key string, fields map[string]any) {
		cancels := map[*session]context.CancelFunc{}
		name := "/" + string(file.Package()) + "." + service + "/" + method
		req := dyn(file, method+"Request", fields)
		b.add("begin "+describe(name, req), func(ctx context.Context, s *session) answer {
			ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
			cancels[s] = cancel
			go func() { _ = s.conn.Invoke(ctx, name, req, dyn(file, method+"Response", nil)) }()
			return nil
		})
		count := func(want int64) func(ctx context.Context, s *session) (bool, error) {
			return func(ctx context.Context, s *session) (bool, error) {
				r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: k(key)})
				return err == nil && r.Count == want, err
			}
		}
		b.until(key+" waits", count(1))
		b.add("give up waiting", func(_ context.Context, s *session) answer { cancels[s](); return nil })
		b.until(key+" is gone", count(0))
	}
	gone(lockFile, "Lock", "Lock", "g/f6", map[string]any{"name": "g", "lease": int64(0xf6)})
	gone(electionFile, "Election", "Campaign", "h/f6", map[string]any{"name": "h", "lease": int64(0xf6), "value": "second"})

	b.wire("Lock with a broken message", "/v3lockpb.Lock/Lock", []byte{0x0a, 0x05, 'x'}, &pb.RangeResponse{})
	b.wire("unknown method of the election service", "/v3electionpb.Election/Elect", nil, &pb.RangeResponse{})
	b.everything()

	// Without a lease the server grants one, with an id of its own; so this comes after the hashes.
	b.add("Lock without a lease", func(ctx context.Context, s *session) answer {
		out := dyn(lockFile, "LockResponse", nil)
		if err := s.conn.Invoke(ctx, "/v3lockpb.Lock/Lock", dyn(lockFile, "LockRequest", map[string]any{"name": "own"}), out); err != nil {
			return failed(err)
		}
		s.headerOfDynamic(out)
		key := out.Get(out.Descriptor().Fields().ByName("key")).Bytes()
		r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: key})
		if err != nil || len(r.Kvs) != 1 {
			return answer{{"key", fmt.Sprintf("%d there, %v", len(r.GetKvs()), err)}}
		}
		l, err := s.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: r.Kvs[0].Lease})
		if err != nil {
			return failed(err)
		}
		return answer{{"key names its lease", fmt.Sprint(string(key) == fmt.Sprintf("own/%x", r.Kvs[0].Lease))}, {"ttl", fmt.Sprint(l.GrantedTTL)},
			{"unlocked", fmt.Sprint(s.conn.Invoke(ctx, "/v3lockpb.Lock/Unlock", dyn(lockFile, "UnlockRequest", map[string]any{"key": string(key)}), dyn(lockFile, "UnlockResponse", nil)))}}
	})
}

// observeSection follows an election over a change of value, a change of leader, a time without
// one, and the next.
func observeSection(b *script) {
	b.add("Observe leaders", func(ctx context.Context, s *session) answer {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		st, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/v3electionpb.Election/Observe")
		if err != nil {
			return failed(err)
		}
		if err := st.SendMsg(dyn(electionFile, "LeaderRequest", map[string]any{"name": "o"})); err != nil {
			return failed(err)
		}
		if err := st.CloseSend(); err != nil {
			return failed(err)
		}
		var a answer
		for i, step := range []func() error{
			func() error { return s.set(ctx, "o/1", "first") },
			func() error { return s.set(ctx, "o/1", "second") },
			func() error {
				if err := s.set(ctx, "o/2", "next"); err != nil {
					return err
				}
				_, err := s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: k("o/1")})
				return err
			},
			func() error {
				if _, err := s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: k("o/2")}); err != nil {
					return err
				}
				return s.set(ctx, "o/3", "later")
			},
		} {
			if err := step(); err != nil {
				return failed(err)
			}
			out := dyn(electionFile, "LeaderResponse", nil)
			err := st.RecvMsg(out)
			for _, f := range s.answerOf(out, err) {
				a = append(a, field{fmt.Sprintf("%d.%s", i, f.path), f.value})
			}
		}
		return a
	})
}

// set puts a key outside the script's own operations.
func (s *session) set(ctx context.Context, key, value string) error {
	_, err := s.kv.Put(ctx, &pb.PutRequest{Key: k(key), Value: k(value)})
	return err
}
