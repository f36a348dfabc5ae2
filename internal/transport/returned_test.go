package transport

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"quorate/internal/transport/peerapi"

	"go.etcd.io/raft/v3/raftpb"
)

func proposalMessage(from, to uint64, n int) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: &from, To: &to, Entries: []*raftpb.Entry{{Data: fmt.Append(nil, n)}}}
}

// outcomes waits until total proposals have arrived at b or were returned to a,
// and returns the two numbers. Each proposal must have exactly one outcome.
func outcomes(t *testing.T, a, b *host, total int) (arrived, returned int) {
	t.Helper()
	seen := map[string]string{}
	note := func(m *raftpb.Message, where string) {
		if m.GetType() != raftpb.MsgProp {
			return
		}
		n := string(m.Entries[0].Data)
		if seen[n] != "" {
			t.Fatalf("proposal %s has %s and %s", n, seen[n], where)
		}
		seen[n] = where
	}
	for len(seen) < total {
		select {
		case m := <-b.msgs:
			note(m, "arrived")
			arrived++
		case m := <-a.returned:
			note(m, "returned")
			returned++
		case <-t.Context().Done():
			t.Fatal("the test was ended")
		}
	}
	return arrived, returned
}

// Without a stream, there are more proposals than the pipeline accepts. Each of
// them arrives or is returned; none is lost and none does both.
func TestProposalsGoBackWhenThePipelineIsFull(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	a.AddPeer(2, []string{b.url()}) // b does not know a, so it opens no stream
	const total = 3000
	for n := range total {
		a.Send([]*raftpb.Message{proposalMessage(1, 2, n)})
	}
	arrived, returned := outcomes(t, a.host, b.host, total)
	if arrived == 0 || returned == 0 {
		t.Errorf("%d arrived and %d came back: the test shows only half", arrived, returned)
	}
}

// If dialing failed, nothing was sent.
func TestProposalsGoBackWhenThePeerIsDown(t *testing.T) {
	t.Parallel()
	a, down := startNode(t, 1), listen(t, "127.0.0.1:0")
	a.AddRemote(2, []string{"http://" + down.Addr().String()})
	down.Close()
	for n := range 20 {
		a.Send([]*raftpb.Message{proposalMessage(1, 2, n)})
	}
	if arrived, returned := outcomes(t, a.host, newHost(), 20); arrived != 0 || returned != 20 {
		t.Errorf("%d arrived, %d came back", arrived, returned)
	}
}

// Messages waiting for a stream that is replaced, or for a remote that becomes a
// peer, are returned; those that may have been written are not.
func TestProposalsGoBackWhenTheWayIsClosed(t *testing.T) {
	t.Parallel()
	a, b := startNode(t, 1), startNode(t, 2)
	connect(t, a, b)
	l := newLink(a.table.Load().peers[2], peerapi.StreamMessage, nil, nil)
	for n := range 10 {
		l.q.push(proposalMessage(1, 2, n))
	}
	l.q.done(l.q.take()[:0]) // this one was written, the following ones were not
	for n := range 5 {
		l.q.push(proposalMessage(1, 2, 100+n))
	}
	taken, waiting := l.q.close()
	if taken != 0 || len(waiting) != 5 {
		t.Errorf("%d taken and %d waiting, want 0 and 5", taken, len(waiting))
	}
	for n := range 10 {
		if l.q.push(proposalMessage(1, 2, n)) != pushClosed {
			t.Fatal("a closed queue takes messages")
		}
	}
	const total = 2000
	for n := range total {
		a.Send([]*raftpb.Message{proposalMessage(1, 2, n)})
		if n == total/2 {
			a.RemovePeer(2)
			a.AddPeer(2, []string{b.url()})
		}
	}
	a.Stop()
	// Messages being written when the stream was closed may have arrived or not;
	// none may have two outcomes.
	seen := map[string]bool{}
	for {
		var m *raftpb.Message
		select {
		case m = <-b.host.msgs:
		case m = <-a.host.returned:
		default:
			return
		}
		if m.GetType() == raftpb.MsgProp {
			n := string(m.Entries[0].Data)
			if seen[n] {
				t.Fatalf("proposal %s has arrived and come back", n)
			}
			seen[n] = true
		}
	}
}

// A proposal whose POST was received but not acknowledged may have entered the log. It must not go back: its
// caller would send it again.
func TestProposalsThatMayHaveArrivedStayAway(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]http.HandlerFunc{
		"connection closed": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"status 500":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, received := startNode(t, 1), make(chan *raftpb.Message, 1)
			leader := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if b, err := io.ReadAll(r.Body); err == nil && r.Method == http.MethodPost {
					if m, err := decodeMessage(b); err == nil {
						received <- m
					}
				}
				answer(w, r)
			}))
			defer leader.Close()
			a.AddRemote(2, []string{leader.URL})
			a.Send([]*raftpb.Message{proposalMessage(1, 2, 7)})
			if m := receive(t, "the proposal at the leader", received); m.GetType() != raftpb.MsgProp {
				t.Fatalf("received %v", m)
			}
			receive(t, "the failure of the request", a.host.unreachable)
			a.Stop() // waits for the pipeline, which would have given the proposal back by now
			if n := len(a.host.returned); n != 0 {
				t.Errorf("%d proposals went back although they may have entered the log", n)
			}
		})
	}
}
