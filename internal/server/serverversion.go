package server

import (
	"go.uber.org/zap"

	"quorate/internal/ids"
	"quorate/internal/membership"
)

// serverVersion is the version that a member reported, "" if it did not answer.
type serverVersion struct {
	id   ids.Member
	text string
}

// parse returns the version, and logs a text that is not a version.
func (s serverVersion) parse(lg *zap.Logger) (v membership.Version, ok bool) {
	if s.text == "" {
		return v, false // logged by the request
	}
	v, err := membership.ParseVersion(s.text)
	if err != nil {
		lg.Warn("failed to parse server version of remote member", zap.Stringer("remote-member-id", s.id),
			zap.String("remote-member-version", s.text), zap.Error(err))
	}
	return v, err == nil
}

// serverVersions are the server versions of all members.
type serverVersions []serverVersion

func (s serverVersions) texts() []string {
	out := make([]string, len(s))
	for i, x := range s {
		out[i] = x.text
	}
	return out
}

// tell logs the members that prevent a decision about the cluster version, or whose version
// is above the one of this server.
func (s serverVersions) tell(lg *zap.Logger) {
	for _, x := range s {
		if v, ok := x.parse(lg); ok && membership.Own.Less(v) {
			lg.Warn("leader found higher-versioned member", zap.Stringer("local-member-version", membership.Own),
				zap.Stringer("remote-member-id", x.id), zap.String("remote-member-version", x.text))
		}
	}
}

// have reports whether all servers are of the release of target, and logs the first that is not.
func (s serverVersions) have(target membership.Version, lg *zap.Logger) bool {
	for _, x := range s {
		v, ok := x.parse(lg)
		if ok && v.MajorMinor() != target.MajorMinor() {
			lg.Warn("remotes server has mismatching etcd version", zap.Stringer("remote-member-id", x.id),
				zap.Stringer("current-server-version", v.MajorMinor()), zap.Stringer("target-version", target.MajorMinor()))
		}
		if !ok || v.MajorMinor() != target.MajorMinor() {
			return false
		}
	}
	return true
}
