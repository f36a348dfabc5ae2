package v2member

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/zap"

	"quorate/internal/clock"
	"quorate/internal/engine/mem"
	"quorate/internal/ids"
	"quorate/internal/membership"
	"quorate/internal/transport/peerapi"
)

// member is a Host whose only peer answers as it is told.
type member struct {
	Host
	answer peerapi.Versions
	err    error
	since  time.Time // when the connection to the peer was established
	asked  int
}

func (m *member) MemberID() ids.Member             { return 1 }
func (m *member) ActiveSince(ids.Member) time.Time { return m.since }
func (m *member) Stopped() <-chan struct{}         { return nil }

func (m *member) Version(context.Context, []string) (peerapi.Versions, error) {
	m.asked++
	return m.answer, m.err
}

// beside returns the service of member 1 of a cluster of two with that version.
func beside(t *testing.T, version string) (*Service, *member, *clock.Manual) {
	t.Helper()
	c := membership.New(membership.Options{LocalID: 1, ServerVersion: membership.Own, Aside: true})
	b := mem.New().NewBatch()
	for id, url := range map[ids.Member]string{1: "http://a:1", 2: "http://b:1"} {
		change, err := membership.AddChange(membership.Member{ID: id, PeerURLs: []string{url}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Apply(b, change); err != nil {
			t.Fatal(err)
		}
		if err := c.SetAttributes(b, id, "m", []string{"http://c:1"}); err != nil {
			t.Fatal(err)
		}
	}
	v, err := membership.ParseVersion(version)
	if err == nil {
		err = c.SetVersion(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
	clk := clock.NewManual(time.Unix(1000, 0))
	m := &member{}
	return New(m, Options{Cluster: c, Clock: clk, Logger: zap.NewNop()}), m, clk
}

// A member's own answer decides whether the others accept writes.
func TestPeers(t *testing.T) {
	down := errors.New("down")
	for _, tc := range []struct {
		version string
		answer  peerapi.Versions
		err     error
		want    error
	}{
		{"3.7.0", peerapi.Versions{Server: "3.7.3", Quorate: "1"}, nil, nil},
		{"3.7.0", peerapi.Versions{Server: "3.7.3"}, nil, ErrBeside},
		{"3.6.0", peerapi.Versions{Server: "3.6.1"}, nil, ErrBeside},
		{"3.5.0", peerapi.Versions{Server: "3.5.9"}, nil, nil},
		{"3.5.0", peerapi.Versions{Server: "3.6.1"}, nil, ErrBeside},
		{"3.7.0", peerapi.Versions{}, down, ErrUnknown},
		{"3.5.0", peerapi.Versions{}, down, nil},
	} {
		s, m, _ := beside(t, tc.version)
		m.answer, m.err = tc.answer, tc.err
		if err := s.allows(t.Context()); !errors.Is(err, tc.want) {
			t.Errorf("version %s beside %+v, %v: %v, want %v", tc.version, tc.answer, tc.err, err, tc.want)
		}
	}
}

// A member's last answer stays valid while it is down; after a reconnect it is asked again,
// and a member that did not answer is asked again after a second.
func TestPeersAskAgain(t *testing.T) {
	s, m, clk := beside(t, "3.7.0")
	look := func(what string, want error, asked int) {
		t.Helper()
		if err := s.allows(t.Context()); !errors.Is(err, want) || m.asked != asked {
			t.Errorf("%s: %v after %d questions, want %v after %d", what, err, m.asked, want, asked)
		}
	}
	m.err = errors.New("down")
	look("never heard of", ErrUnknown, 1)
	look("not asked again at once", ErrUnknown, 1)
	clk.Advance(askAgain)
	m.err, m.answer, m.since = nil, peerapi.Versions{Server: "3.7.3", Quorate: "1"}, clk.Now()
	look("up", nil, 2)
	look("known", nil, 2)
	m.since, m.answer = time.Time{}, peerapi.Versions{Server: "3.7.3"}
	look("down", nil, 2)
	clk.Advance(time.Minute)
	m.since = clk.Now()
	look("back as another program", ErrBeside, 3)
}
