// Package monitoring is the lane of what lies in deploy/monitoring: alerts, recording
// rules and the dashboard, before a real Prometheus.
//
// promtool checks the rules and runs their tests. A Prometheus then scrapes a cluster of
// three members and a learner under traffic that sets everything off that the files name.
// Each selector of a rule or of a panel must match a series, each panel must show
// something, and alerts must fire for what is done to the cluster. The queries that
// dashboards of etcd are made of are put to it as well.
package monitoring
