package server

import (
	"encoding/json"
	"time"

	"quorate/internal/membership"
	"quorate/internal/transport"
)

// leadership is who led last, and since when this member knows.
type leadership struct {
	leader uint64
	since  time.Time
}

// SelfStats returns what this member knows about itself and its messages, as the
// JSON of etcd's v2 API. Messages are counted only with Config.Stats.
func (m *Member) SelfStats() []byte {
	type leaderInfo struct {
		Leader    string    `json:"leader"`
		Uptime    string    `json:"uptime"`
		StartTime time.Time `json:"startTime"`
	}
	s := struct {
		Name                 string     `json:"name"`
		ID                   string     `json:"id"`
		State                string     `json:"state"`
		StartTime            time.Time  `json:"startTime"`
		LeaderInfo           leaderInfo `json:"leaderInfo"`
		RecvAppendRequestCnt uint64     `json:"recvAppendRequestCnt"`
		RecvPkgRate          float64    `json:"recvPkgRate,omitempty"`
		RecvBandwidthRate    float64    `json:"recvBandwidthRate,omitempty"`
		SendAppendRequestCnt uint64     `json:"sendAppendRequestCnt"`
		SendPkgRate          float64    `json:"sendPkgRate,omitempty"`
		SendBandwidthRate    float64    `json:"sendBandwidthRate,omitempty"`
	}{Name: m.cfg.Name, ID: membership.FormatID(m.id), State: "StateFollower", StartTime: m.opened}
	if m.isLeader() {
		s.State = "StateLeader"
	}
	now := m.cfg.Clock.Now()
	s.LeaderInfo.StartTime = m.opened
	if l := m.led.Load(); l != nil {
		s.LeaderInfo.Leader, s.LeaderInfo.StartTime = membership.FormatID(l.leader), l.since
	}
	s.LeaderInfo.Uptime = now.Sub(s.LeaderInfo.StartTime).String()
	st := m.tr.Stats()
	s.RecvAppendRequestCnt, s.RecvPkgRate, s.RecvBandwidthRate = st.Received.Now(now)
	s.SendAppendRequestCnt, s.SendPkgRate, s.SendBandwidthRate = st.Sent.Now(now)
	return m.statsJSON(s)
}

// LeaderStats returns how sending to the others went, as the JSON of etcd's v2
// API, nil on a member that does not lead.
func (m *Member) LeaderStats() []byte {
	if !m.isLeader() {
		return nil
	}
	return m.statsJSON(struct {
		Leader    string                             `json:"leader"`
		Followers map[string]transport.FollowerStats `json:"followers"`
	}{membership.FormatID(m.id), m.tr.Followers()})
}

func (m *Member) statsJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // numbers and texts always have a form in JSON
		return []byte("{}")
	}
	return b
}
