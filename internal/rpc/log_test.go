package rpc

import (
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// TestSlowRequests checks the log line about slow calls, which must not contain values.
func TestSlowRequests(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	o := testOptions()
	o.Logger = zap.New(core)
	o.WarnUnaryDuration = 1
	conn := dialRaw(t, serve(t, o, newFake(t)))
	for _, c := range []struct {
		req  proto.Message
		want string
	}{
		{&pb.PutRequest{Key: []byte("k"), Value: []byte("secret")}, "/etcdserverpb.KV/Put 1×11 0×12 key:\"k\" value_size:6"},
		{&pb.RangeRequest{Key: []byte("k")}, "/etcdserverpb.KV/Range 0×3 1×19 key:\"k\""},
		{&pb.TxnRequest{Success: ops(put("a", "secret"), get("b"))}, "/etcdserverpb.KV/Txn 2×18 0×30 compare:<> success:<request_put:<key:\"a\" value_size:6 > request_range:{key:\"b\"}> failure:<>"},
		{&pb.DeleteRangeRequest{Key: []byte("k")}, "/etcdserverpb.KV/DeleteRange 0×3 1×14 key:\"k\""},
		{&pb.StatusRequest{}, "/etcdserverpb.Maintenance/Status -1×-1 -1×-1 "},
	} {
		method, resp := methodOf(t, c.req)
		if err := conn.Invoke(testContext(t), method, c.req, resp); err != nil {
			t.Fatal(err)
		}
		lines := logs.FilterMessage("request stats").TakeAll()
		if len(lines) != 1 || lines[0].Level != zapcore.WarnLevel {
			t.Fatalf("%s: got %d lines", method, len(lines))
		}
		f := lines[0].ContextMap()
		if got := fmt.Sprintf("%v %v×%v %v×%v %v", f["response type"], f["request count"], f["request size"], f["response count"], f["response size"], f["request content"]); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(c.want), " ") {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		for _, name := range []string{"start time", "time spent", "remote"} {
			if _, ok := f[name]; !ok {
				t.Errorf("%s: no field %q", method, name)
			}
		}
		logs.TakeAll()
	}
}
