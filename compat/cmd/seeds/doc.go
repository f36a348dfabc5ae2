// Command seeds records the seeds of the fuzz targets: bytes that real etcd and etcdctl have sent or written.
//
// In: the real programs in compat/bin. Out: files in internal/*/testdata/fuzz, named etcd-*, in the format of
// go test; those of an earlier recording are removed. Run it with make -C compat seeds.
//
// A cluster of etcd 3.7 runs behind proxies that record the first bytes of each connection between members and of
// those of etcdctl; one of its members falls behind and gets a snapshot. A member of etcd 3.5 does the same for the
// v2 API. Then their logs, snapshots and databases are cut into records. Each seed is small; few of a kind are kept.
//
// Invariant: ids, ports and tokens are those of the recording; nothing depends on the machine otherwise.
package main
