package differential

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/status"

	"quorate/compat/harness"
)

// quotaLines fills a member with a small quota and records what is refused then, also after a restart, and what
// is accepted again once the alarm is disarmed. How much fits is not compared.
func quotaLines(ctx context.Context, dir, binary string) (lines []string, err error) {
	m, err := harness.StartSingle(ctx, harness.Config{Binary: binary, Dir: dir, Args: []string{"--quota-backend-bytes=6000000"}})
	if err != nil {
		return nil, err
	}
	defer m.Kill()
	s, err := newSession(m.ClientAddr())
	if err != nil {
		return nil, err
	}
	defer s.close()
	var rev int64
	value := bytes.Repeat([]byte("v"), 100<<10)
	for i := 0; ; i++ {
		r, err := s.kv.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "fill/%04d", i), Value: value})
		if err != nil {
			lines = append(lines, "put beyond the quota: "+status.Code(err).String()+" "+status.Convert(err).Message())
			break
		}
		s.member, rev = r.Header.MemberId, r.Header.Revision
	}
	id := fmt.Sprint(s.member)
	say := func(what string, err error, more ...any) {
		line := what + ": "
		if err != nil {
			line += status.Code(err).String() + " " + status.Convert(err).Message()
		} else {
			line += strings.TrimSuffix(fmt.Sprintln(more...), "\n")
		}
		lines = append(lines, strings.ReplaceAll(oneBlank(line), id, "MEMBER"))
	}
	page := func(path string) {
		resp, err := http.Get(m.ClientURL() + path)
		if err != nil {
			say(path, err)
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		say(path, err, resp.StatusCode, string(b))
	}
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t")}}}
	del := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("none")}}}
	look := func(when string) {
		// The alarm itself is raised a moment after the first refusal.
		for deadline := time.Now().Add(membershipLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if r, err := s.maint.Alarm(ctx, &pb.AlarmRequest{}); err == nil && len(r.Alarms) > 0 {
				break
			}
		}
		a, err := s.maint.Alarm(ctx, &pb.AlarmRequest{})
		say(when+", alarms", err, a.GetAlarms())
		_, err = s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
		say(when+", put", err, "ok")
		_, err = s.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{del, put}})
		say(when+", txn with a put", err, "ok")
		_, err = s.kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{del}})
		say(when+", txn without", err, "ok")
		_, err = s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 100})
		say(when+", grant", err, "ok")
		_, err = s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 4711})
		say(when+", revoke", err, "ok")
		r, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte("fill/0001"), CountOnly: true})
		say(when+", range", err, r.GetCount())
		st, err := s.maint.Status(ctx, &pb.StatusRequest{})
		say(when+", status", err, st.GetErrors(), st.GetDbSizeQuota())
		page("/health")
		page("/health?exclude=NOSPACE")
		page("/readyz")
	}
	look("full")
	if err := m.Kill(); err != nil {
		return nil, err
	}
	if err := m.Restart(); err != nil {
		return nil, err
	}
	for m.Running() { // /health is unhealthy, so it cannot be polled
		if _, err := s.maint.Alarm(ctx, &pb.AlarmRequest{}); err == nil {
			break
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		time.Sleep(20 * time.Millisecond)
	}
	look("after a restart")
	d, err := s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("fill/"), RangeEnd: []byte("fill0")})
	say("delete everything", err, d.GetDeleted() > 10)
	if err == nil {
		rev = d.Header.Revision
	}
	_, err = s.kv.Compact(ctx, &pb.CompactionRequest{Revision: rev, Physical: true})
	say("compact", err, "ok")
	_, err = s.maint.Defragment(ctx, &pb.DefragmentRequest{})
	say("defragment", err, "ok")
	_, err = s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k")})
	say("small, and not disarmed: put", err, "ok")
	for _, who := range []uint64{s.member + 1, s.member, s.member} {
		r, err := s.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: who, Alarm: pb.AlarmType_NOSPACE})
		say("disarm", err, r.GetAlarms())
	}
	for deadline := time.Now().Add(membershipLimit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		// The size is checked periodically; until then a write may raise the alarm again.
		if _, err = s.kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: value}); err == nil {
			break
		}
		s.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: s.member, Alarm: pb.AlarmType_NOSPACE})
	}
	say("disarmed: put", err, "ok")
	page("/health")
	return lines, nil
}

func TestQuotaAlike(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*membershipLimit)
	defer cancel()
	var lines [2][]string
	for i, binary := range []string{*flagA, *flagB} {
		var err error
		if lines[i], err = quotaLines(ctx, filepath.Join(t.TempDir(), fmt.Sprint(i)), binary); err != nil {
			t.Fatalf("%s: %v", binary, err)
		}
	}
	a, b := lines[0], lines[1]
	if len(a) != len(b) {
		t.Fatalf("%d answers, and %d", len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			t.Errorf("etcd: %s\nours: %s", a[i], b[i])
		}
	}
	t.Logf("%d answers:\n%s", len(a), strings.Join(a, "\n"))
}
