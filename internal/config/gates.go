package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"quorate/internal/httpapi"
)

// Names of the feature gates that have an effect in this server.
const (
	CompactHashCheck       = "CompactHashCheck"
	InitialCorruptCheck    = "InitialCorruptCheck"
	LeaseCheckpoint        = "LeaseCheckpoint"
	LeaseCheckpointPersist = "LeaseCheckpointPersist"
	PriorityRequest        = "PriorityRequest"
	SetMemberLocalAddr     = "SetMemberLocalAddr"
	NotServingOnDefrag     = "StopGRPCServiceOnDefrag"
)

// Stages of a gate, as in the series etcd_server_feature_enabled.
const (
	StageAlpha = "ALPHA"
	StageBeta  = "BETA"
)

// gate is one feature gate.
type gate struct {
	Name    string
	Stage   string
	Default bool
}

// known lists the gates of etcd 3.7, sorted by name. AllAlpha and AllBeta stand for every
// gate of a stage.
var known = []gate{
	{Name: "AllAlpha", Stage: StageAlpha},
	{Name: "AllBeta", Stage: StageBeta},
	{Name: CompactHashCheck, Stage: StageAlpha},
	{Name: "FastLeaseKeepAlive", Stage: StageBeta, Default: true},
	{Name: InitialCorruptCheck, Stage: StageAlpha},
	{Name: LeaseCheckpoint, Stage: StageAlpha},
	{Name: LeaseCheckpointPersist, Stage: StageAlpha},
	{Name: PriorityRequest, Stage: StageAlpha},
	{Name: SetMemberLocalAddr, Stage: StageAlpha},
	{Name: NotServingOnDefrag, Stage: StageAlpha},
	{Name: "TxnModeWriteWithSharedBuffer", Stage: StageBeta, Default: true},
}

// effectiveGates change the behaviour of this server; all others are accepted without
// effect.
var effectiveGates = []string{CompactHashCheck, InitialCorruptCheck, LeaseCheckpoint, LeaseCheckpointPersist,
	PriorityRequest, SetMemberLocalAddr, NotServingOnDefrag}

// Gates is the value of --feature-gates. The zero value has all gates at their defaults.
type Gates struct{ set map[string]bool }

// Set applies Name=bool,Name=bool on top of earlier settings. On an error nothing changes.
func (g *Gates) Set(text string) error {
	next := make(map[string]bool, len(g.set))
	for name, v := range g.set {
		next[name] = v
	}
	for item := range strings.SplitSeq(text, ",") {
		if item == "" {
			continue
		}
		name, value, found := strings.Cut(item, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !found {
			return fmt.Errorf("missing bool value for %s", name)
		}
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("invalid value of %s=%s, err: %w", name, value, err)
		}
		next[name] = on
	}
	for _, name := range sortedKeys(next) {
		if gateIndex(name) < 0 {
			return fmt.Errorf("unrecognized feature gate: %s", name)
		}
	}
	g.set = next
	return nil
}

// String returns the gates that were set, sorted by name.
func (g *Gates) String() string {
	if g == nil {
		return ""
	}
	pairs := make([]string, 0, len(g.set))
	for _, name := range sortedKeys(g.set) {
		pairs = append(pairs, fmt.Sprintf("%s=%t", name, g.set[name]))
	}
	return strings.Join(pairs, ",")
}

// Enabled reports whether a gate is on: its own setting, else that of its stage, else its
// default. An unknown gate is off.
func (g *Gates) Enabled(name string) bool {
	if v, ok := g.set[name]; ok {
		return v
	}
	i := gateIndex(name)
	if i < 0 {
		return false
	}
	stage := "AllAlpha"
	if known[i].Stage == StageBeta {
		stage = "AllBeta"
	}
	if v, ok := g.set[stage]; ok {
		return v
	}
	return known[i].Default
}

// List returns every known gate with its state, sorted by name.
func (g *Gates) List() []httpapi.Feature {
	list := make([]httpapi.Feature, len(known))
	for i, k := range known {
		list[i] = httpapi.Feature{Name: k.Name, Stage: k.Stage, Enabled: g.Enabled(k.Name)}
	}
	return list
}

// inert returns the gates that were moved off their default and have no effect.
func (g *Gates) inert() []string {
	var names []string
	for _, gate := range known {
		isGroup := gate.Name == "AllAlpha" || gate.Name == "AllBeta"
		if g.Enabled(gate.Name) != gate.Default && !isGroup && !slices.Contains(effectiveGates, gate.Name) {
			names = append(names, gate.Name)
		}
	}
	return names
}

func gateIndex(name string) int {
	return slices.IndexFunc(known, func(g gate) bool { return g.Name == name })
}

// sortedKeys returns the keys of m, sorted.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
