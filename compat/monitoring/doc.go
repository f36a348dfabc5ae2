// Package monitoring checks the files in deploy/monitoring against a real Prometheus: alerts, recording rules
// and the dashboard.
//
// promtool checks the rules and runs their tests. A Prometheus then scrapes a cluster of three members and a
// learner under traffic that exercises everything that the files name. Each selector of a rule or of a panel
// must match a series, each panel must show data, and alerts must fire for the faults injected into the cluster.
// The queries that dashboards for etcd use are tried as well.
package monitoring
