package metrics

import "github.com/prometheus/client_golang/prometheus"

// Metrics of the log, the engine and the key space.
var (
	DiskBackendCommitDurationSeconds   = newHistogram("etcd_disk_backend_commit_duration_seconds", "Backend commit (fsync of the database)", prometheus.ExponentialBuckets(0.001, 2, 14))
	DiskBackendDefragDurationSeconds   = newHistogram("etcd_disk_backend_defrag_duration_seconds", "Defragmentation", prometheus.ExponentialBuckets(0.1, 2, 13))
	DiskBackendSnapshotDurationSeconds = newHistogram("etcd_disk_backend_snapshot_duration_seconds", "Backend snapshot", prometheus.ExponentialBuckets(0.01, 2, 17))
	DiskDefragInflight                 = newGauge("etcd_disk_defrag_inflight", "1 while defragmenting")
	DiskWALFsyncDurationSeconds        = newHistogram("etcd_disk_wal_fsync_duration_seconds", "WAL fsync", prometheus.ExponentialBuckets(0.001, 2, 14))
	DiskWALWriteBytesTotal             = newGauge("etcd_disk_wal_write_bytes_total", "Bytes written to the WAL (gauge)")
	DiskWALWriteDurationSeconds        = newHistogram("etcd_disk_wal_write_duration_seconds", "WAL write before fsync", prometheus.ExponentialBuckets(0.001, 2, 14))
	MVCCDBOpenReadTransactions         = newGauge("etcd_mvcc_db_open_read_transactions", "Open backend read transactions")
	MVCCDBTotalSizeInBytes             = newGauge("etcd_mvcc_db_total_size_in_bytes", "Backend file size")
	MVCCDBTotalSizeInUseInBytes        = newGauge("etcd_mvcc_db_total_size_in_use_in_bytes", "File size minus free pages")
	MVCCDeleteTotal                    = newCounter("etcd_mvcc_delete_total", "Deletes seen by this member")
	MVCCHashDurationSeconds            = newHistogram("etcd_mvcc_hash_duration_seconds", "Hash of the backend", prometheus.ExponentialBuckets(0.01, 2, 15))
	MVCCHashRevDurationSeconds         = newHistogram("etcd_mvcc_hash_rev_duration_seconds", "HashKV", prometheus.ExponentialBuckets(0.01, 2, 15))
	MVCCPutTotal                       = newCounter("etcd_mvcc_put_total", "Puts seen by this member")
	MVCCRangeTotal                     = newCounter("etcd_mvcc_range_total", "Ranges served by this member")
	MVCCTxnTotal                       = newCounter("etcd_mvcc_txn_total", "Transactions with more than one op (range, put or delete)")
	SnapDBFsyncDurationSeconds         = newHistogram("etcd_snap_db_fsync_duration_seconds", "fsync of a received database file", prometheus.ExponentialBuckets(0.001, 2, 14))
	SnapDBSaveTotalDurationSeconds     = newHistogram("etcd_snap_db_save_total_duration_seconds", "Saving a received database file", prometheus.ExponentialBuckets(0.1, 2, 10))
	SnapFsyncDurationSeconds           = newHistogram("etcd_snap_fsync_duration_seconds", "fsync of a .snap file", prometheus.ExponentialBuckets(0.001, 2, 14))
)
