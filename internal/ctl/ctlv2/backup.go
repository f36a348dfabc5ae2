package ctlv2

import (
	"context"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"go.etcd.io/etcd/client/pkg/v3/logutil"

	"quorate/internal/datadir"
	"quorate/internal/membership"
)

func (t copyCommands) backup() *cobra.Command {
	var b datadir.Backup
	return t.leaf("backup", "Copies the directory of a member that is not running; 'etcdutl backup' does the same", func(fs *flagSet) {
		fs.StringVar(&b.From.DataDir, "data-dir", "", "the member's data directory")
		fs.StringVar(&b.From.WALDir, "wal-dir", "", "where its log is, if elsewhere")
		fs.StringVar(&b.To.DataDir, "backup-dir", "", "the data directory to make")
		fs.StringVar(&b.To.WALDir, "backup-wal-dir", "", "where to put its log, if elsewhere")
		fs.BoolVar(&b.V3, "with-v3", false, "include the data of the v3 API")
	}, func([]string) error {
		for _, f := range []struct{ name, value string }{{"data-dir", b.From.DataDir}, {"backup-dir", b.To.DataDir}} {
			if f.value == "" {
				return plain("No directory given; please use `--%s`", f.name)
			}
		}
		b.From.FS, b.To.FS = vfs.Default, vfs.Default
		return b.Make(context.Background(), datadir.Options{Version: membership.Own, Logger: newLogger(t.Stderr)})
	})
}

// newLogger returns etcdutl's logger, which etcdctl uses for backup: console lines on w.
func newLogger(w io.Writer) *zap.Logger {
	cfg := logutil.DefaultZapLoggerConfig.EncoderConfig
	cfg.EncodeTime = zapcore.RFC3339TimeEncoder
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(cfg), zapcore.Lock(zapcore.AddSync(w)), zapcore.InfoLevel)
	return zap.New(core, zap.AddCaller())
}
