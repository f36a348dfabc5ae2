package membership

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

// Version is a semantic version. The zero value means "not decided".
type Version struct {
	Major, Minor, Patch uint64
	// Pre is the pre-release part without its dash, as in 3.7.0-rc.1.
	Pre string
}

// ParseVersion parses major.minor.patch with an optional pre-release part;
// build metadata after a plus sign is dropped.
func ParseVersion(s string) (Version, error) {
	core, _, _ := strings.Cut(s, "+")
	core, pre, _ := strings.Cut(core, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return Version{}, fmt.Errorf("version %q is not of the form major.minor.patch", s)
	}
	var n [3]uint64
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 63)
		if err != nil {
			return Version{}, fmt.Errorf("version %q: %w", s, err)
		}
		n[i] = v
	}
	return Version{Major: n[0], Minor: n[1], Patch: n[2], Pre: pre}, nil
}

// String returns the version as ParseVersion reads it.
func (v Version) String() string {
	s := strconv.FormatUint(v.Major, 10) + "." + strconv.FormatUint(v.Minor, 10) + "." + strconv.FormatUint(v.Patch, 10)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// Decided reports whether v is not the zero value.
func (v Version) Decided() bool { return v != Version{} }

// Short returns major.minor, the form in logs and texts.
func (v Version) Short() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// MajorMinor returns v without patch and pre-release, the form in which cluster
// versions are stored.
func (v Version) MajorMinor() Version { return Version{Major: v.Major, Minor: v.Minor} }

// Less reports whether v comes before w in the order of semantic versions.
func (v Version) Less(w Version) bool {
	if c := cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor), cmp.Compare(v.Patch, w.Patch)); c != 0 {
		return c < 0
	}
	switch {
	case v.Pre == w.Pre:
		return false
	case v.Pre == "":
		return false
	case w.Pre == "":
		return true
	}
	return lessPre(strings.Split(v.Pre, "."), strings.Split(w.Pre, "."))
}

// lessPre compares pre-release identifiers: numbers by value and before words,
// a shorter list before a longer one that starts with it.
func lessPre(a, b []string) bool {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] == b[i] {
			continue
		}
		x, errX := strconv.ParseUint(a[i], 10, 64)
		y, errY := strconv.ParseUint(b[i], 10, 64)
		switch {
		case errX == nil && errY == nil:
			return x < y
		case errX == nil:
			return true
		case errY == nil:
			return false
		default:
			return a[i] < b[i]
		}
	}
	return len(a) < len(b)
}

// Downgrade is the replicated state of a cluster downgrade.
type Downgrade struct {
	Target  string `json:"target-version"` // major.minor.0; empty when not enabled
	Enabled bool   `json:"enabled"`
}

// DowngradeTarget returns the only version to which a cluster of version v can
// be downgraded: one minor below. ok is false for the first minor of a major.
func DowngradeTarget(v Version) (target Version, ok bool) {
	if v.Minor == 0 {
		return Version{}, false
	}
	return Version{Major: v.Major, Minor: v.Minor - 1}, true
}

// MinServerVersion returns the lowest of the members' server versions, or the zero
// Version if one of them is unknown, which is passed as "".
func MinServerVersion(servers []string) Version {
	var lowest Version
	for _, s := range servers {
		v, err := ParseVersion(s)
		if err != nil {
			return Version{}
		}
		if !lowest.Decided() || v.Less(lowest) {
			lowest = v
		}
	}
	return lowest
}

// ErrDowngradeTarget means that the target of the downgrade is not one minor below the
// version of the cluster or of its oldest server.
var ErrDowngradeTarget = fmt.Errorf("membership: invalid downgrade target")

// NextClusterVersion decides, on the leader, whether the cluster version must change.
// current is the zero Version before the first decision, lowest is the result of
// MinServerVersion.
func NextClusterVersion(current, lowest Version, d Downgrade) (next Version, change bool, err error) {
	if !current.Decided() {
		if !lowest.Decided() {
			return MinClusterVersion, true, nil
		}
		return lowest.MajorMinor(), true, nil
	}
	if !lowest.Decided() {
		return Version{}, false, nil
	}
	if d.Enabled {
		return downgradeStep(current, lowest, d)
	}
	next = lowest.MajorMinor()
	if next.Major == current.Major && current.MajorMinor().Less(next) {
		return next, true, nil
	}
	return Version{}, false, nil
}

func downgradeStep(current, lowest Version, d Downgrade) (Version, bool, error) {
	target, err := ParseVersion(d.Target)
	if err != nil {
		return Version{}, false, fmt.Errorf("%w: %w", ErrDowngradeTarget, err)
	}
	if target == current {
		return Version{}, false, nil
	}
	for _, from := range []Version{current, lowest} {
		if allowed, ok := DowngradeTarget(from); !ok || allowed != target {
			return Version{}, false, fmt.Errorf("%w: %v from %v", ErrDowngradeTarget, target, from)
		}
	}
	return target, true, nil
}

// tellStored logs, in etcd's words, that the level of the stored data follows the
// cluster version. In a downgrade, the older release may be started from then on.
func (c *Cluster) tellStored(old, now *state) {
	from, to := old.version, now.version
	if from == to || !from.Decided() || from == MinClusterVersion || to == MinClusterVersion {
		return
	}
	c.lg.Info("cluster version differs from storage version.", zap.Stringer("cluster-version", to), zap.Stringer("storage-version", from))
	c.lg.Info("updated storage version", zap.Stringer("new-storage-version", to))
	if now.downgrade.Enabled {
		c.lg.Info("The server is ready to downgrade", zap.String("target-version", now.downgrade.Target), zap.Stringer("server-version", c.serverVersion))
	}
}

// CheckJoin decides whether a server of version own may join a cluster whose members
// returned these cluster versions; texts that are not versions ("not_decided", "") count
// as unknown. At least one must be known, and all known ones must be in the allowed
// range.
func CheckJoin(clusterVersions []string, own Version, downgrading bool) error {
	low, high := MinClusterVersion, own.MajorMinor()
	if downgrading {
		high.Minor++
		low = high
	}
	known := false
	for _, s := range clusterVersions {
		v, err := ParseVersion(s)
		if err != nil {
			continue
		}
		if v.Less(low) || high.Less(v) {
			return fmt.Errorf("membership: cluster version %v of a remote member is outside %v to %v", v, low, high)
		}
		known = true
	}
	if !known {
		return fmt.Errorf("membership: no remote member reported its cluster version")
	}
	return nil
}
