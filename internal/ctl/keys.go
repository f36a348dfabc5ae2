package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"quorate/internal/clock"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Commands on keys. put, get and del turn arguments into an operation in a method of their
// own, because txn parses the same command lines.

var errPrefixAndFromKey = errors.New("`--prefix` and `--from-key` cannot be set at the same time, choose one")
var errTooManyWithRangeFlag = errors.New("too many arguments, only accept one argument when `--prefix` or `--from-key` is set")

// keyOp is one request on keys, in the client's form.
type keyOp struct {
	key   string
	value string // of a put
	opts  []clientv3.OpOption
}

func (o *keyOp) add(opt clientv3.OpOption) { o.opts = append(o.opts, opt) }

// rangeOver makes the operation apply to [key, end), to a prefix, or to all keys from key
// on.
func (o *keyOp) rangeOver(args []string, prefix, fromKey bool) error {
	o.key = args[0]
	if len(args) > 1 {
		if prefix || fromKey {
			return fail(exitBadArgs, errTooManyWithRangeFlag)
		}
		o.add(clientv3.WithRange(args[1]))
		return nil
	}
	switch {
	case fromKey, prefix && o.key == "":
		if o.key == "" {
			o.key = "\x00" // the empty key does not exist; all keys follow this one
		}
		o.add(clientv3.WithFromKey())
	case prefix:
		o.add(clientv3.WithPrefix())
	}
	return nil
}

type putFlags struct {
	lease                            string
	prevKV, ignoreValue, ignoreLease bool
}

func (a keyCommands) put() *cobra.Command {
	cmd, f := newPutCommand()
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		op, err := f.op(args, a.Stdin)
		if err != nil {
			return err
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			r, err := c.Put(ctx, op.key, op.value, op.opts...)
			if err != nil {
				return s.rpcError(exitError, err)
			}
			return s.out.put(r)
		})
	})
	return cmd
}

func newPutCommand() (*cobra.Command, *putFlags) {
	cmd := &cobra.Command{
		Use:   "put [options] <key> [value]",
		Short: "Stores a value under a key",
		Long: strings.TrimSpace(`
Stores a value under a key. Without a value argument the value is all of
standard input.

A value that begins with a dash looks like a flag: put "--" before it.`),
		Example: examples(
			"etcdctl put greeting hello",
			"etcdctl put config < config.yaml",
			"etcdctl put --lease=694d9a8a6c5a5b2c temperature -- -5"),
	}
	f := &putFlags{}
	fs := cmd.Flags()
	fs.StringVar(&f.lease, "lease", "0", "lease to attach the key to, in hexadecimal; the key is deleted when the lease ends")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print the pair that was there before")
	fs.BoolVar(&f.ignoreValue, "ignore-value", false, "keep the value that the key has")
	fs.BoolVar(&f.ignoreLease, "ignore-lease", false, "keep the lease that the key has")
	return cmd, f
}

func (f *putFlags) op(args []string, stdin io.Reader) (*keyOp, error) {
	errNeed := badArgs("put command needs 1 argument and input from stdin or 2 arguments")
	switch {
	case len(args) == 0:
		return nil, errNeed
	case f.ignoreValue && len(args) > 1:
		return nil, badArgs("put command needs only 1 argument when 'ignore-value' is set")
	}
	op := &keyOp{key: args[0]}
	switch {
	case f.ignoreValue:
	case len(args) > 1:
		op.value = args[1]
	default:
		b, err := io.ReadAll(stdin)
		if err != nil || len(b) == 0 {
			return nil, errNeed
		}
		op.value = string(b)
	}
	id, err := strconv.ParseInt(f.lease, 16, 64)
	if err != nil {
		return nil, badArgs("bad lease ID (%w), expecting ID in Hex", err)
	}
	if id != 0 {
		op.add(clientv3.WithLease(clientv3.LeaseID(id)))
	}
	if f.prevKV {
		op.add(clientv3.WithPrevKV())
	}
	if f.ignoreValue {
		op.add(clientv3.WithIgnoreValue())
	}
	if f.ignoreLease {
		op.add(clientv3.WithIgnoreLease())
	}
	return op, nil
}

type getFlags struct {
	consistency, order, sortBy string
	limit, rev                 int64
	prefix, fromKey            bool
	keysOnly, countOnly        bool
	valueOnly, stream          bool
	minCreateRev, maxCreateRev int64
	minModRev, maxModRev       int64
}

func (a keyCommands) get() *cobra.Command {
	cmd, f := newGetCommand()
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		op, err := f.op(args)
		if err != nil {
			return err
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			r, err := f.fetch(ctx, c, op)
			if err != nil {
				return s.rpcError(exitError, err)
			}
			return f.print(s.out, r)
		})
	})
	return cmd
}

func newGetCommand() (*cobra.Command, *getFlags) {
	cmd := &cobra.Command{
		Use:   "get [options] <key> [range_end]",
		Short: "Prints a key, or the keys of a range",
		Long: strings.TrimSpace(`
Prints a key, or with range_end the keys in [key, range_end). A key that is not
there is no error: nothing is printed.`),
		Example: examples(
			"etcdctl get greeting",
			"etcdctl get --prefix /registry/pods/ --keys-only --limit=10",
			"etcdctl get greeting --rev=42 -w json"),
	}
	f := &getFlags{}
	fs := cmd.Flags()
	fs.StringVar(&f.consistency, "consistency", "l", "l (linearizable) asks the cluster, s (serializable) reads the member's own data")
	fs.StringVar(&f.order, "order", "", "ASCEND or DESCEND (default ASCEND)")
	fs.StringVar(&f.sortBy, "sort-by", "", "CREATE, KEY, MODIFY, VALUE or VERSION (default KEY)")
	fs.Int64Var(&f.limit, "limit", 0, "print at most this many keys (0: all)")
	fs.BoolVar(&f.prefix, "prefix", false, "all keys that begin with the key")
	fs.BoolVar(&f.fromKey, "from-key", false, "all keys from the key on, in byte order")
	fs.Int64Var(&f.rev, "rev", 0, "as it was at this revision (0: now)")
	fs.BoolVar(&f.keysOnly, "keys-only", false, "leave the values out")
	fs.BoolVar(&f.countOnly, "count-only", false, "only the number of keys; needs --write-out=fields")
	fs.BoolVar(&f.valueOnly, "print-value-only", false, "leave the keys out; needs --write-out=simple")
	fs.Int64Var(&f.minCreateRev, "min-create-rev", 0, "only keys created at this revision or later")
	fs.Int64Var(&f.maxCreateRev, "max-create-rev", 0, "only keys created at this revision or earlier")
	fs.Int64Var(&f.minModRev, "min-mod-rev", 0, "only keys modified at this revision or later")
	fs.Int64Var(&f.maxModRev, "max-mod-rev", 0, "only keys modified at this revision or earlier")
	fs.BoolVar(&f.stream, "stream", false, "fetch in pieces with the RangeStream request (etcd 3.7)")
	oneOf(cmd, "consistency", "l", "s")
	oneOf(cmd, "order", "ASCEND", "DESCEND")
	oneOf(cmd, "sort-by", "CREATE", "KEY", "MODIFY", "VALUE", "VERSION")
	return cmd, f
}

var sortOrders = map[string]clientv3.SortOrder{
	"":        clientv3.SortNone,
	"ASCEND":  clientv3.SortAscend,
	"DESCEND": clientv3.SortDescend,
}

var sortTargets = map[string]clientv3.SortTarget{
	"":        clientv3.SortByKey,
	"KEY":     clientv3.SortByKey,
	"CREATE":  clientv3.SortByCreateRevision,
	"MODIFY":  clientv3.SortByModRevision,
	"VALUE":   clientv3.SortByValue,
	"VERSION": clientv3.SortByVersion,
}

func (f *getFlags) op(args []string) (*keyOp, error) {
	switch {
	case len(args) == 0:
		return nil, badArgs("get command needs one argument as key and an optional argument as range_end")
	case f.prefix && f.fromKey:
		return nil, fail(exitBadArgs, errPrefixAndFromKey)
	case f.keysOnly && f.countOnly:
		return nil, badArgs("`--keys-only` and `--count-only` cannot be set at the same time, choose one")
	}
	serializable, err := isSerializable(f.consistency)
	if err != nil {
		return nil, err
	}
	op := &keyOp{}
	if serializable {
		op.add(clientv3.WithSerializable())
	}
	if err := op.rangeOver(args, f.prefix, f.fromKey); err != nil {
		return nil, err
	}
	order, ok := sortOrders[strings.ToUpper(f.order)]
	if !ok {
		return nil, fail(exitBadFeature, fmt.Errorf("bad sort order %s", f.order))
	}
	target, ok := sortTargets[strings.ToUpper(f.sortBy)]
	if !ok {
		return nil, fail(exitBadFeature, fmt.Errorf("bad sort target %s", f.sortBy))
	}
	op.add(clientv3.WithLimit(f.limit))
	op.add(clientv3.WithSort(target, order))
	if f.rev > 0 {
		op.add(clientv3.WithRev(f.rev))
	}
	if f.keysOnly {
		op.add(clientv3.WithKeysOnly())
	}
	if f.countOnly {
		op.add(clientv3.WithCountOnly())
	}
	return op, f.addRevBounds(op)
}

func (f *getFlags) addRevBounds(op *keyOp) error {
	if f.minCreateRev > 0 {
		op.add(clientv3.WithMinCreateRev(f.minCreateRev))
	}
	if f.maxCreateRev > 0 {
		if f.minCreateRev > f.maxCreateRev {
			return fail(exitBadFeature, fmt.Errorf("getMinCreateRev(=%d) > getMaxCreateRev(=%d)", f.minCreateRev, f.maxCreateRev))
		}
		op.add(clientv3.WithMaxCreateRev(f.maxCreateRev))
	}
	if f.minModRev > 0 {
		op.add(clientv3.WithMinModRev(f.minModRev))
	}
	if f.maxModRev > 0 {
		if f.minModRev > f.maxModRev {
			return fail(exitBadFeature, fmt.Errorf("getMinModRev(=%d) > getMaxModRev(=%d)", f.minModRev, f.maxModRev))
		}
		op.add(clientv3.WithMaxModRev(f.maxModRev))
	}
	return nil
}

func (f *getFlags) fetch(ctx context.Context, c *clientv3.Client, op *keyOp) (*clientv3.GetResponse, error) {
	if !f.stream {
		return c.Get(ctx, op.key, op.opts...)
	}
	pieces, err := c.GetStream(ctx, op.key, op.opts...)
	if err != nil {
		return nil, err
	}
	return clientv3.GetStreamToGetResponse(pieces)
}

func (f *getFlags) print(out printer, r *clientv3.GetResponse) error {
	if _, ok := out.(*fieldsPrinter); f.countOnly && !ok {
		return badArgs("--count-only is only for `--write-out=fields`")
	}
	if f.valueOnly {
		simple, ok := out.(*simplePrinter)
		if !ok {
			return badArgs("print-value-only is only for `--write-out=simple`")
		}
		simple.valueOnly = true
	}
	return out.get(r)
}

// isSerializable parses the value of a --consistency flag.
func isSerializable(consistency string) (bool, error) {
	switch consistency {
	case "s":
		return true, nil
	case "l":
		return false, nil
	}
	return false, fail(exitBadFeature, fmt.Errorf("unknown consistency flag %q", consistency))
}

type delFlags struct {
	prefix, fromKey, prevKV, rangeOK bool
}

func (a keyCommands) del() *cobra.Command {
	cmd, f := newDelCommand()
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		op, err := f.op(args, a.Stderr)
		if err != nil {
			return err
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			r, err := c.Delete(ctx, op.key, op.opts...)
			if err != nil {
				return s.rpcError(exitError, err)
			}
			return s.out.del(r)
		})
	})
	return cmd
}

func newDelCommand() (*cobra.Command, *delFlags) {
	cmd := &cobra.Command{
		Use:   "del [options] <key> [range_end]",
		Short: "Deletes a key, or the keys of a range, and prints how many they were",
		Example: examples(
			"etcdctl del greeting",
			"etcdctl del --prefix /sessions/ --prev-kv",
			"etcdctl del --range a b"),
	}
	f := &delFlags{}
	fs := cmd.Flags()
	fs.BoolVar(&f.prefix, "prefix", false, "all keys that begin with the key")
	fs.BoolVar(&f.fromKey, "from-key", false, "all keys from the key on, in byte order")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "print the pairs that were deleted")
	fs.BoolVar(&f.rangeOK, "range", false, "do not wait before deleting a range with range_end")
	return cmd, f
}

// rangeGrace is how long del waits before it deletes [key, range_end): a user may give two
// keys and mean just these two.
const rangeGrace = 2 * time.Second

func (f *delFlags) op(args []string, stderr io.Writer) (*keyOp, error) {
	switch {
	case len(args) == 0 || len(args) > 2:
		return nil, badArgs("del command needs one argument as key and an optional argument as range_end")
	case f.prefix && f.fromKey:
		return nil, fail(exitBadArgs, errPrefixAndFromKey)
	}
	op := &keyOp{}
	if err := op.rangeOver(args, f.prefix, f.fromKey); err != nil {
		return nil, err
	}
	if len(args) > 1 && !f.rangeOK {
		fmt.Fprintf(stderr, "Warning: Keys between %q and %q will be deleted. Please interrupt the command within next 2 seconds to cancel. "+
			"You can provide `--range` flag to avoid the delay.\n", args[0], args[1])
		clock.Pause(rangeGrace)
	}
	if f.prevKV {
		op.add(clientv3.WithPrevKV())
	}
	return op, nil
}

func (a keyCommands) compaction() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "compaction [options] <revision>",
		Short: "Discards the history of all keys before a revision",
		Long: strings.TrimSpace(`
Discards the history of all keys before a revision. Current values stay, watches
and reads of earlier revisions fail from then on.`),
		Example: examples("etcdctl compaction --physical 1234"),
	}
	physical := cmd.Flags().Bool("physical", false, "return once the old revisions are deleted from the disk")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return badArgs("compaction command needs 1 argument")
		}
		rev, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil {
			return err
		}
		var opts []clientv3.CompactOption
		if *physical {
			opts = append(opts, clientv3.WithCompactPhysical())
		}
		return a.call(cmd, func(ctx context.Context, s *session, c *clientv3.Client) error {
			if _, err := c.Compact(ctx, rev, opts...); err != nil {
				return s.rpcError(exitError, err)
			}
			fmt.Fprintln(a.Stdout, "compacted revision", rev)
			return nil
		})
	})
	return cmd
}
