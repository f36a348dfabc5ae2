package ctl

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func (a keyCommands) txn() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "txn [options]",
		Short: "Compares keys and applies one of two lists of requests, all at once",
		Long: strings.TrimSpace(`
Reads three lists from standard input, each ended by an empty line: comparisons,
the requests to apply if all of them hold, and the requests to apply if not.

A comparison is TARGET("key") OP "value", where TARGET is value, version,
create, mod or lease and OP is =, !=, < or >. Requests are lines of the commands
get, put and del.`),
		Example: examples(
			"etcdctl txn <<'END'",
			`mod("greeting") > "0"`,
			"",
			`put greeting "hello again"`,
			"",
			"put greeting hello",
			"",
			"END"),
	}
	interactive := cmd.Flags().BoolP("interactive", "i", false, "say which list is to be typed")
	cmd.Run = a.runs(func(cmd *cobra.Command, args []string) error {
		if len(args) != 0 {
			return badArgs("txn command does not accept argument")
		}
		s, err := a.session(cmd)
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		defer c.Close()

		in := txnReader{app: a.app, in: bufio.NewReader(a.Stdin), prompt: *interactive}
		compares, err := in.compares()
		if err != nil {
			return err
		}
		success, err := in.requests("success")
		if err != nil {
			return err
		}
		failure, err := in.requests("failure")
		if err != nil {
			return err
		}
		ctx, cancel := s.timeout()
		defer cancel()
		r, err := c.Txn(ctx).If(compares...).Then(success...).Else(failure...).Commit()
		if err != nil {
			return s.rpcError(exitError, err)
		}
		return s.out.txn(r)
	})
	return cmd
}

// txnReader reads the three lists of a transaction.
type txnReader struct {
	app    *app
	in     *bufio.Reader
	prompt bool
}

func (r *txnReader) compares() ([]clientv3.Cmp, error) {
	var cmps []clientv3.Cmp
	err := r.lines("compares:", func(line string) error {
		c, err := parseCompare(line)
		if err != nil {
			return fail(exitInvalidInput, err)
		}
		cmps = append(cmps, c)
		return nil
	})
	return cmps, err
}

func (r *txnReader) requests(which string) ([]clientv3.Op, error) {
	var ops []clientv3.Op
	err := r.lines(which+" requests (get, put, del):", func(line string) error {
		op, err := r.request(line)
		if err != nil {
			return err
		}
		ops = append(ops, op)
		return nil
	})
	return ops, err
}

// lines calls f for every line up to an empty one.
func (r *txnReader) lines(prompt string, f func(string) error) error {
	if r.prompt {
		fmt.Fprintln(r.app.Stdout, prompt)
	}
	for {
		line, err := r.in.ReadString('\n')
		if err != nil {
			return fail(exitInvalidInput, err)
		}
		line = strings.TrimSpace(line)
		if line == "" {
			return nil
		}
		if err := f(line); err != nil {
			return err
		}
	}
}

// request parses a line of get, put or del.
func (r *txnReader) request(line string) (clientv3.Op, error) {
	words, err := splitWords(line)
	if err != nil {
		return clientv3.Op{}, err
	}
	if len(words) < 2 {
		return clientv3.Op{}, fail(exitInvalidInput, fmt.Errorf("invalid txn compare request: %s", line))
	}

	var op clientv3.Op
	invalid := &exitErr{code: exitInvalidInput, err: fmt.Errorf("invalid txn request: %s", line)}
	opErr := error(invalid) // until one of the commands runs
	put, pf := newPutCommand()
	put.Run = func(_ *cobra.Command, args []string) {
		var o *keyOp
		// Standard input is the transaction: no value can be read from it.
		if o, opErr = pf.op(args, strings.NewReader("")); opErr == nil {
			op = clientv3.OpPut(o.key, o.value, o.opts...)
		}
	}
	get, gf := newGetCommand()
	get.Run = func(_ *cobra.Command, args []string) {
		var o *keyOp
		if o, opErr = gf.op(args); opErr == nil {
			op = clientv3.OpGet(o.key, o.opts...)
		}
	}
	del, df := newDelCommand()
	del.Run = func(_ *cobra.Command, args []string) {
		var o *keyOp
		if o, opErr = df.op(args, r.app.Stderr); opErr == nil {
			op = clientv3.OpDelete(o.key, o.opts...)
		}
	}
	requests := &cobra.Command{SilenceErrors: true, SilenceUsage: true}
	requests.SetOut(io.Discard)
	requests.SetErr(io.Discard)
	requests.AddCommand(put, get, del)
	requests.SetArgs(words)
	if err := requests.Execute(); err != nil {
		invalid.notes = []string{err.Error()} // no command ran; this is why
	}
	return op, opErr
}

// parseCompare parses TARGET("key") OP "value".
func parseCompare(line string) (clientv3.Cmp, error) {
	none := clientv3.Cmp{}
	target, rest, ok := strings.Cut(line, "(")
	if !ok {
		return none, fmt.Errorf("malformed comparison: %s", line)
	}
	var key, op, val string
	n, err := fmt.Sscanf(rest, "%q) %s %q", &key, &op, &val)
	if n != 3 {
		return none, fmt.Errorf("malformed comparison: %s; got %s(%q) %s %q", line, target, key, op, val)
	}
	if err != nil {
		return none, fmt.Errorf("malformed comparison: %s (%w)", line, err)
	}
	switch op {
	case "=", "!=", "<", ">":
	default:
		return none, fmt.Errorf("malformed comparison: %s (unknown operator %s)", line, op)
	}

	var of clientv3.Cmp
	switch target {
	case "ver", "version":
		of = clientv3.Version(key)
	case "c", "create":
		of = clientv3.CreateRevision(key)
	case "m", "mod":
		of = clientv3.ModRevision(key)
	case "val", "value":
		return clientv3.Compare(clientv3.Value(key), op, val), nil
	case "lease":
		id, err := strconv.ParseInt(val, 16, 64) // in hexadecimal, as lease IDs are everywhere else
		if err != nil {
			return none, fmt.Errorf("invalid txn compare request: %s", line)
		}
		return clientv3.Compare(clientv3.LeaseValue(key), op, id), nil
	default:
		return none, fmt.Errorf("malformed comparison: %s (unknown target %s)", line, target)
	}
	v, err := strconv.ParseInt(val, 10, 64)
	if err != nil {
		return none, fmt.Errorf("invalid txn compare request: %s", line)
	}
	return clientv3.Compare(of, op, v), nil
}
