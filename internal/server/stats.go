package server

import (
	"encoding/json"
	"time"

	"quorate/internal/transport"
)

// Stats returns statistics about raft messages, in the form of the v2 API.
type Stats struct {
	cfg     *Config
	replica *localReplica
	tr      *transport.Transport
}

// SelfStats returns statistics about this member and its messages, as the JSON of etcd's v2
// API. Messages are counted only with Config.Stats.
func (h *Stats) SelfStats() []byte {
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
	}{Name: h.cfg.Name, ID: h.replica.id.String(), State: "StateFollower", StartTime: h.replica.opened}
	if h.replica.isLeader() {
		s.State = "StateLeader"
	}
	now := h.cfg.Clock.Now()
	s.LeaderInfo.StartTime = h.replica.opened
	if l := h.replica.led.Load(); l != nil {
		s.LeaderInfo.Leader, s.LeaderInfo.StartTime = l.leader.String(), l.since
	}
	s.LeaderInfo.Uptime = now.Sub(s.LeaderInfo.StartTime).String()
	st := h.tr.Stats()
	s.RecvAppendRequestCnt, s.RecvPkgRate, s.RecvBandwidthRate = st.Received.Now(now)
	s.SendAppendRequestCnt, s.SendPkgRate, s.SendBandwidthRate = st.Sent.Now(now)
	return h.statsJSON(s)
}

// LeaderStats returns statistics about messages to the followers, as the JSON of etcd's v2
// API; nil on a member that does not lead.
func (h *Stats) LeaderStats() []byte {
	if !h.replica.isLeader() {
		return nil
	}
	return h.statsJSON(struct {
		Leader    string                             `json:"leader"`
		Followers map[string]transport.FollowerStats `json:"followers"`
	}{h.replica.id.String(), h.tr.Followers()})
}

func (h *Stats) statsJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // numbers and strings can always be encoded
		return []byte("{}")
	}
	return b
}
