package v2request_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"quorate/internal/command"
	"quorate/internal/legacy/v2request"
)

// Entries as etcd 3.5.35 writes them to its log.
var (
	v2Attributes = unhex("0881c2b8d2bec0e89ce601120350" + "55541a262f302f6d656d626572732f633866663364623164613836653633392f61747472696275746573" +
		"223a7b226e616d65223a2264656661756c74222c22636c69656e7455524c73223a5b22687474703a2f2f3132372e302e302e313a3331393739225d7d" +
		"280032003800480050005800600068007000780080" + "0100")
	v2Version = unhex("0882c2b8d2bec0e89ce60112035055541a0a2f302f76657273696f6e2205332e352e30280032003800480050005800600068007000780080" + "0100")
)

// v2Every is a request with all fields, as 3.5 encodes it.
var v2Every = unhex("08ac02" + "1203505554" + "1a042f312f61" + "220176" + "2801" + "320170" + "3809" + "4000" +
	"48ffffffffffffffffff01" + "5001" + "5805" + "6001" + "6801" + "7001" + "784d" + "800101" + "880101")

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

// v2Bytes encodes a v2 request as 3.5 does: every field that cannot be null.
func v2Bytes(id uint64, method, path, val string, more ...byte) []byte {
	b := protowire.AppendVarint([]byte{8}, id)
	for i, s := range []string{method, path, val} {
		b = protowire.AppendString(append(b, byte(i+2)<<3|2), s)
	}
	b = append(b, 0x28, 0, 0x32, 0, 0x38, 0, 0x48, 0, 0x50, 0, 0x58, 0, 0x60, 0, 0x68, 0, 0x70, 0, 0x78, 0, 0x80, 1, 0)
	return append(b, more...)
}

func TestDecode(t *testing.T) {
	first := v2Attributes
	peeked, ok := command.PeekID(first)
	if !ok {
		t.Fatalf("no id in %x", first)
	}
	attributes := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: peeked},
		ClusterMemberAttrSet: &membershippb.ClusterMemberAttrSetRequest{Member_ID: 0xc8ff3db1da86e639,
			MemberAttributes: &membershippb.Attributes{Name: "default", ClientUrls: []string{"http://127.0.0.1:31979"}}}}
	version := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: peeked + 1}, ClusterVersionSet: &membershippb.ClusterVersionSetRequest{Ver: "3.5.0"}}
	nothing := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 7}, DowngradeVersionTest: &pb.DowngradeVersionTestRequest{Ver: "3.6.0"}}
	wrapped := protowire.AppendBytes([]byte{0x12}, v2Version) // field 2 of InternalRaftRequest up to 3.6
	for name, c := range map[string]struct {
		data []byte
		want *pb.InternalRaftRequest
	}{
		"attributes": {v2Attributes, attributes},
		"version":    {v2Version, version},
		"wrapped":    {wrapped, version},
		// As a v3 message this one is a put of the empty key.
		"sweep": {v2Bytes(7, "SYNC", "", ""), nothing},
		"read":  {v2Bytes(7, "QGET", "/1/a", ""), nothing},
	} {
		got, err := command.Decode(c.data)
		if err != nil || !proto.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, c.want)
		}
	}
}

// For a v2 request, members of 3.7 get one of their own requests; everything else is
// unchanged.
func TestModern(t *testing.T) {
	for name, data := range map[string][]byte{"attributes": v2Attributes, "version": v2Version, "wrapped": protowire.AppendBytes([]byte{0x12}, v2Version), "read": v2Bytes(7, "QGET", "/1/a", "")} {
		want, err := command.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		b := v2request.Modern(data)
		if _, v2, _ := v2request.Decode(b); v2 {
			t.Errorf("%s is still a v2 request", name)
		}
		if got, err := command.Decode(b); err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: got %v, %v, want %v", name, got, err, want)
		}
	}
	for name, data := range map[string][]byte{"nothing": nil, "an id": {8, 1}, "torn": {8, 0x80}, "a put": command.Encode(&pb.RequestHeader{ID: 1}, command.Put, []byte{0x0a, 1, 'k'})} {
		if got := v2request.Modern(data); string(got) != string(data) {
			t.Errorf("%s has become %x", name, got)
		}
		if got := v2request.Plain(data); string(got) != string(data) {
			t.Errorf("%s has become %x on the way back", name, got)
		}
	}
}

// A request to the tree of the v2 API passes through members of etcd that do not know it:
// for them it is a request without effect, for Quorate and for members of 3.5 it is the
// original.
func TestCarry(t *testing.T) {
	for _, data := range [][]byte{v2Bytes(7, "PUT", "/1/a", "v"), v2Bytes(1<<60, "POST", "/2/a", "v"), v2Bytes(7, "SYNC", "", "")} {
		b := v2request.Modern(data)
		foreign := &pb.InternalRaftRequest{}
		if err := proto.Unmarshal(b, foreign); err != nil || foreign.DowngradeVersionTest.GetVer() != "3.6.0" || command.Op(foreign) != "unknown" {
			t.Errorf("%x: others read %v, %v", data, foreign, err)
		}
		want, _, _ := v2request.Parse(data)
		if got, ok, err := v2request.Parse(b); !ok || err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%x: got %+v, %v, %v, want %+v", data, got, ok, err, want)
		}
		if id, ok := command.PeekID(b); !ok || id != want.ID {
			t.Errorf("%x: peeked at %d, %v", data, id, ok)
		}
		if got := v2request.Plain(b); !bytes.Equal(got, data) {
			t.Errorf("%x has come back as %x", data, got)
		}
		if again := v2request.Modern(b); !bytes.Equal(again, b) {
			t.Errorf("%x was carried twice: %x", data, again)
		}
		for what, entry := range map[string][]byte{"bare": data, "carried": b} {
			if is, write, carries := v2request.Look(entry); !is || !write || carries != (what == "carried") {
				t.Errorf("%s %x: %v, %v, %v", what, data, is, write, carries)
			}
		}
	}
	if is, write, carries := v2request.Look(v2Version); !is || write || carries {
		t.Errorf("the version: %v, %v, %v", is, write, carries)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		data  []byte
		write bool
	}{
		{"a client's write", v2Bytes(7, "PUT", "/1/a", "v"), true},
		{"a client's delete", v2Bytes(7, "DELETE", "/1/a", ""), true},
		{"a client's post", v2Bytes(7, "POST", "/1/a", "v"), true},
		{"a conditional write", v2Bytes(7, "PUT", "/0/version", "3.5.0", 0x40, 1), true},
		{"attributes of no member", v2Bytes(7, "PUT", "/0/members/xyz/attributes", "{}"), false},
		{"attributes that are no JSON", v2Bytes(7, "PUT", "/0/members/1/attributes", "{"), false},
		{"torn", v2Attributes[:40], false},
	} {
		got, err := command.Decode(c.data)
		if err == nil || errors.Is(err, v2request.ErrWrite) != c.write {
			t.Errorf("%s: got %v, %v", c.name, got, err)
		}
	}
}

// Marshal reproduces entries of 3.5 byte by byte, and every field survives.
func TestMarshal(t *testing.T) {
	for name, data := range map[string][]byte{"attributes": v2Attributes, "version": v2Version, "conditions": v2Every} {
		r, ok, err := v2request.Parse(data)
		if err != nil || !ok {
			t.Fatalf("%s: %v, %v", name, ok, err)
		}
		if got := r.Marshal(); !bytes.Equal(got, data) {
			t.Errorf("%s: got %x, want %x", name, got, data)
		}
	}
	r, _, _ := v2request.Parse(v2Every)
	want := &v2request.Request{ID: 300, Method: "PUT", Path: "/1/a", Val: "v", Dir: true, PrevValue: "p", PrevIndex: 9, PrevExist: new(false),
		Expiration: -1, Wait: true, Since: 5, Recursive: true, Sorted: true, Quorum: true, Time: 77, Stream: true, Refresh: new(true)}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got %+v, want %+v", r, want)
	}
	wrapped := protowire.AppendBytes([]byte{0x12}, v2Every)
	if r, ok, err := v2request.Parse(wrapped); err != nil || !ok || !reflect.DeepEqual(r, want) {
		t.Errorf("wrapped: got %+v, %v, %v, want %+v", r, ok, err, want)
	}
	for name, data := range map[string][]byte{"nothing": nil, "an id": {8, 1}, "a put": command.Encode(&pb.RequestHeader{ID: 1}, command.Put, []byte{0x0a, 1, 'k'})} {
		if r, ok, err := v2request.Parse(data); ok || err != nil {
			t.Errorf("%s: got %+v, %v, %v, want none", name, r, ok, err)
		}
	}
}

var methods = []string{"GET", "QGET", "HEAD", "PUT", "POST", "DELETE", "SYNC"}

// FuzzDecode looks for entries that panic or decode to more than they contain.
func FuzzDecode(f *testing.F) {
	f.Add(v2Attributes)
	f.Add(v2Version)
	f.Add(v2Every)
	f.Add(protowire.AppendBytes([]byte{0x12}, v2Attributes))
	f.Add(v2Bytes(7, "SYNC", "", ""))
	f.Add(v2Bytes(7, "PUT", "/1/a", "v", 0x40, 1))
	f.Add(v2request.Modern(v2Bytes(7, "DELETE", "/1/a", "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, ok, err := v2request.Parse(data); ok && err == nil {
			again, ok, err := v2request.Parse(v.Marshal())
			if slices.Contains(methods, v.Method) && (!ok || err != nil || !reflect.DeepEqual(again, v)) {
				t.Fatalf("%+v has become %+v, %v, %v", v, again, ok, err)
			}
		}
		r, ok, err := v2request.Decode(data)
		if !ok || err != nil {
			return
		}
		switch {
		case r.ClusterMemberAttrSet != nil:
			if !strings.Contains(string(data), "/0/members/") {
				t.Fatalf("attributes from %x", data)
			}
		case r.ClusterVersionSet != nil:
			if !strings.Contains(string(data), "/0/version") {
				t.Fatalf("version from %x", data)
			}
		case r.DowngradeVersionTest == nil:
			t.Fatalf("got %v from %x", r, data)
		}
		got, err := command.Decode(data)
		if err != nil || !proto.Equal(got, r) {
			t.Fatalf("got %v, %v, want %v", got, err, r)
		}
		if got, err = command.Decode(v2request.Modern(data)); err != nil || !proto.Equal(got, r) {
			t.Fatalf("translated: got %v, %v, want %v", got, err, r)
		}
	})
}
