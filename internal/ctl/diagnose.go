package ctl

import (
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/internal/diagnose"
)

// diagnose returns, one line for each endpoint, why a request got no answer. It is empty if
// err is a server's answer.
func (s *session) diagnose(err error, endpoints []string) []string {
	cfg, cerr := s.config(endpoints...)
	if cerr != nil {
		return nil
	}
	return s.diagnosis(cfg).Notes(err, endpoints)
}

// diagnosis returns how requests with a configuration are sent.
func (s *session) diagnosis(cfg *clientv3.Config) diagnose.Client {
	return diagnose.Client{TLS: cfg.TLS, Certificate: s.spec.Secure != nil && s.spec.Secure.Cert != "",
		Limit: fmt.Sprintf("the %v of --command-timeout", s.app.global.commandTimeout)}
}
