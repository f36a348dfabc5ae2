package utl

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"

	"quorate/internal/datadir"
	"quorate/internal/membership"
)

func (a snapshotCommands) backup() *cobra.Command {
	var b datadir.Backup
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "[legacy] offline backup of etcd directory",
		Long: "Copies the directory of a member that is not running, of etcd or of this program, with the data of the v2\n" +
			"API. A server that starts on the copy with --force-new-cluster makes a new cluster of one of it.\n" +
			"Prefer 'etcdctl snapshot save', which needs no stop and takes the data of the v3 API alone.",
		Example: "  etcdutl backup --data-dir /var/lib/etcd --backup-dir /var/backups/etcd",
		Run: a.runs(func(cmd *cobra.Command, args []string) error {
			b.From.FS, b.To.FS = vfs.Default, vfs.Default
			return b.Make(cmd.Context(), datadir.Options{Version: membership.Own, Logger: a.lg})
		}),
	}
	fs := cmd.Flags()
	fs.StringVar(&b.From.DataDir, "data-dir", "", "Path to the etcd data dir")
	fs.StringVar(&b.From.WALDir, "wal-dir", "", "Path to the etcd wal dir")
	fs.StringVar(&b.To.DataDir, "backup-dir", "", "Path to the backup dir")
	fs.StringVar(&b.To.WALDir, "backup-wal-dir", "", "Path to the backup wal dir")
	fs.BoolVar(&b.V3, "with-v3", true, "Backup v3 backend data")
	for _, n := range []string{"data-dir", "backup-dir"} {
		if err := cmd.MarkFlagRequired(n); err != nil {
			panic(err) // the flags are registered above
		}
	}
	dirFlags(cmd, "data-dir", "wal-dir", "backup-dir", "backup-wal-dir")
	return cmd
}
