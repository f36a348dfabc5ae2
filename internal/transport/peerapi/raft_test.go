package peerapi

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

var self = Sender{ID: 0x1f, Cluster: 0xcdf818194e3a8c32, Version: membership.Own, PeerURLs: []string{"http://self:1"}}

// receiver is a RaftServer that rejects requests according to its field.
type receiver struct {
	Sender
	refuse *Refusal
	got    string // the last body
	from   From
	which  Stream
	dialer ids.Member
}

func (s *receiver) ServeMessage(w http.ResponseWriter, r *http.Request)  { s.take(w, r) }
func (s *receiver) ServeSnapshot(w http.ResponseWriter, r *http.Request) { s.take(w, r) }

func (s *receiver) take(w http.ResponseWriter, r *http.Request) {
	if s.Accept(w, r, http.MethodPost) != nil {
		return
	}
	b, _ := io.ReadAll(r.Body)
	s.got, s.from = string(b), FromHeader(r.Header)
	if s.refuse != nil {
		s.refuse.Write(w)
		return
	}
	Taken(w)
}

func (s *receiver) ServeStream(w http.ResponseWriter, r *http.Request) {
	if s.Accept(w, r, http.MethodGet) != nil {
		return
	}
	which, dialer, err := StreamOf(r)
	var why Refusal
	if errors.As(err, &why) {
		why.Write(w)
		return
	}
	s.which, s.dialer, s.from = which, dialer, FromHeader(r.Header)
	if s.refuse != nil {
		s.refuse.Write(w)
		return
	}
	io.WriteString(w, "frames")
}

// TestRaftBothHalves connects a sender and a receiver: each understands the other,
// whichever is older.
func TestRaftBothHalves(t *testing.T) {
	s := &receiver{Sender: self}
	server := httptest.NewServer(RaftHandler(s))
	defer server.Close()
	ctx := t.Context()
	var failed error // of the last response
	post := func(from Sender, snapshot bool) error {
		t.Helper()
		request := from.PostMessage
		if snapshot {
			request = from.PostSnapshot
		}
		req, err := request(ctx, server.URL, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		failed = PostAnswer(resp)
		return failed
	}
	open := func(from Sender, which Stream) error {
		t.Helper()
		req, err := from.OpenStream(ctx, server.URL, which, self.ID)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		v, err := StreamAnswer(resp)
		if v != self.Version {
			t.Errorf("the release of the peer is %v", v)
		}
		failed = err
		return err
	}
	peer := Sender{ID: 2, Cluster: self.Cluster, Version: membership.V35, PeerURLs: []string{"http://a:1", "http://a:2"}}
	for _, snapshot := range []bool{false, true} {
		if err := post(peer, snapshot); err != nil || s.got != "body" || s.from.ID != 2 || s.from.Version != membership.V35 || !slices.Equal(s.from.PeerURLs, peer.PeerURLs) {
			t.Errorf("post: %v, %q from %+v", err, s.got, s.from)
		}
	}
	for _, which := range []Stream{StreamMsgApp, StreamMessage} {
		if err := open(peer, which); err != nil || s.which != which || s.dialer != 2 || s.from.For != self.ID.String() {
			t.Errorf("%v: %v, got %v of %d for %s", which, err, s.which, s.dialer, s.from.For)
		}
	}
	for _, tt := range []struct {
		from Sender
		want error
	}{
		{Sender{ID: 2, Cluster: 7, Version: self.Version}, ErrOtherCluster},
		{Sender{ID: 2, Cluster: self.Cluster, Version: membership.Version{Major: 2, Minor: 3}}, ErrIncompatible},
		{Sender{ID: 2, Cluster: self.Cluster, Version: membership.Version{Major: 4}}, nil}, // it accepts 3.0
	} {
		if post(tt.from, false); !errors.Is(failed, tt.want) || tt.want == nil && failed != nil {
			t.Errorf("%+v: %v, want %v", tt.from, failed, tt.want)
		}
		if open(tt.from, StreamMessage); !errors.Is(failed, tt.want) || tt.want == nil && failed != nil {
			t.Errorf("%+v: %v, want %v", tt.from, failed, tt.want)
		}
	}
	for _, tt := range []struct {
		refuse Refusal
		want   error
	}{{StreamRemoved, ErrRemoved}, {StreamUnknown, ErrUnknownSender}, {StreamMisdirected, nil}} {
		s.refuse = &tt.refuse
		if open(peer, StreamMsgApp); failed == nil || tt.want != nil && failed != tt.want {
			t.Errorf("%v: %v, want %v", tt.refuse, failed, tt.want)
		}
	}
	// No refusal of a message may look like a removal, which stops the member that receives
	// it.
	for _, r := range []Refusal{MessageUnread, MessageMalformed, MessageNotProcessed, SnapshotWrongType, SnapshotMalformed(io.EOF), SnapshotNotStored(io.EOF), SnapshotNotProcessed(io.EOF)} {
		s.refuse = &r
		if post(peer, false); failed == nil || failed == ErrRemoved || !strings.Contains(failed.Error(), r.Error()) {
			t.Errorf("%v reaches the sender as %v", r, failed)
		}
	}
}

func TestProbe(t *testing.T) {
	server := httptest.NewServer(RaftHandler(&receiver{Sender: self}))
	defer server.Close()
	if now, err := Probe(t.Context(), http.DefaultClient, server.URL); err != nil || time.Since(now).Abs() > time.Hour {
		t.Errorf("%v %v", now, err)
	}
	for _, answer := range []string{"", "{", `{"OK":false}`, strings.Repeat(" ", maxHealth) + `{"OK":true}`} {
		bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, answer) }))
		if _, err := Probe(t.Context(), http.DefaultClient, bad.URL); err == nil {
			t.Errorf("%.20q passes for health", answer)
		}
		bad.Close()
	}
}

// FuzzRaftHeaders feeds arbitrary request headers.
func FuzzRaftHeaders(f *testing.F) {
	f.Add("GET", "/raft/stream/msgapp/2", "2", "3.7.0", "3.0.0", "cdf818194e3a8c32", "1f", "http://a:1,http://b:1")
	f.Add("POST", "/raft", "x", "3", "-", "", "", ",")
	f.Fuzz(func(t *testing.T, method, path, from, version, lowest, cluster, to, urls string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Method, r.URL.Path = method, path
		for k, v := range map[string]string{headerFrom: from, headerVersion: version, headerMinVersion: lowest, HeaderCluster: cluster, headerTo: to, headerPeerURLs: urls} {
			r.Header.Set(k, v)
		}
		s := &receiver{Sender: self}
		w := httptest.NewRecorder()
		RaftHandler(s).ServeHTTP(w, r)
		if s.from.Version.Decided() && cluster != self.Cluster.String() {
			t.Errorf("one of cluster %q is heard", cluster)
		}
		if w.Code == http.StatusForbidden {
			t.Error("the answer takes the sender for removed")
		}
	})
}
