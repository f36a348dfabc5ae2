package main

import (
	"errors"

	"go.uber.org/zap"

	"quorate/internal/certs"
	"quorate/internal/config"
	"quorate/internal/discovery"
)

// discoveryError is a failure to find the founders of the cluster.
type discoveryError struct{ err error }

func (e *discoveryError) Error() string { return e.err.Error() }
func (e *discoveryError) Unwrap() error { return e.err }

// notStarted logs why the process does not start and returns its exit code.
func notStarted(cfg *config.Config, err error) int {
	lg := cfg.Log()
	if known := (*certs.StartError)(nil); errors.As(err, &known) {
		return cfg.Fatal(known.Message, known.Err).Code
	}
	if found := (*discoveryError)(nil); !errors.As(err, &found) {
		return cfg.FatalExit(err).Code
	}
	token := cfg.Discovery.Token
	if token == "" {
		token = cfg.V2Discovery.URL
	}
	switch {
	case errors.Is(err, discovery.ErrDuplicateID):
		lg.Warn("member has been registered with discovery service", zap.String("name", cfg.Member.Name), zap.String("discovery-token", token), zap.Error(err))
		lg.Warn("but could not find valid cluster configuration", zap.String("data-dir", cfg.Member.DataDir))
		lg.Warn("check data dir if previous bootstrap succeeded")
		lg.Warn("or use a new discovery token if previous bootstrap failed")
	case errors.Is(err, discovery.ErrDuplicateName):
		lg.Warn("member with duplicated name has already been registered", zap.String("discovery-token", token), zap.Error(err))
		lg.Warn("cURL the discovery token URL for details")
		lg.Warn("do not reuse discovery token; generate a new one to bootstrap a cluster")
	case errors.Is(err, discovery.ErrFull):
		lg.Warn("failed to bootstrap; discovery token was already used", zap.String("discovery-token", token),
			zap.Strings("discovery-endpoints", cfg.Discovery.Client.Endpoints), zap.Error(err))
		lg.Warn("do not reuse discovery token; generate a new one to bootstrap a cluster")
	default:
		return cfg.Fatal("discovery failed", err).Code
	}
	return 1
}
