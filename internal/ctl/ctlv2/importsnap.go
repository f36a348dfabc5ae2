package ctlv2

import (
	"context"
	"fmt"
	"log"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	client "go.etcd.io/etcd/client/v2"

	"quorate/internal/clock"
	"quorate/internal/legacy/v2store"
)

// shortLife is the minimum TTL of an imported key: it has to outlive the import.
const shortLife = 5 * time.Minute

// maxImporters bounds -c.
const maxImporters = 1000

func (t copyCommands) importSnap() *cobra.Command {
	var file string
	var hidden words
	var clients int
	return t.leaf("import", "Copies the keys of a saved v2 store, in the form of etcd 0.4, into the cluster", func(fs *flagSet) {
		fs.StringVar(&file, "snap", "", "file with the store")
		fs.Var(&hidden, "hidden", "also this hidden key, with everything below it; may be repeated")
		fs.IntVar(&clients, "c", 10, "how many keys to copy at the same time")
	}, func([]string) error {
		if file == "" {
			return said(t.tool, "no snapshot file provided (use --snap)")
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return said(t.tool, "cannot read snapshot file "+file)
		}
		dump, err := v2store.ParseDump(data)
		if err != nil {
			return plain("%s: %v", file, err)
		}
		roots := []string{"/"}
		for _, h := range hidden {
			roots = append(roots, path.Clean("/"+h))
		}
		c, err := t.client()
		if err != nil {
			return err
		}
		clients = min(max(clients, 1), maxImporters)
		fmt.Fprintf(t.Stdout, "starting to import snapshot %s with %d clients\n", file, clients)
		n, err := t.importKeys(client.NewKeysAPI(c), dump, roots, clients)
		if err != nil {
			return err
		}
		fmt.Fprintf(t.Stdout, "finished importing %d keys\n", n)
		return nil
	})
}

// said returns a failure whose text is already on standard output, as in etcdctl.
func said(t *tool, text string) error {
	fmt.Fprintln(t.Stdout, text)
	return &failure{code: exitError}
}

// pair is a key to copy.
type pair struct {
	key, value string
	life       time.Duration
}

// importKeys copies everything below roots, several keys at a time, and stops at the first
// error. It returns the number of copied keys.
func (t copyCommands) importKeys(api client.KeysAPI, dump *v2store.Dump, roots []string, clients int) (int, error) {
	var pairs []pair
	log := log.New(t.Stderr, "", log.LstdFlags)
	for _, r := range roots {
		n := dump.Root.Child(strings.FieldsFunc(r, func(c rune) bool { return c == '/' })...)
		if n == nil {
			return 0, refused(exitServerError, client.Error{Code: client.ErrorCodeKeyNotFound, Message: "Key not found", Cause: r, Index: dump.CurrentIndex})
		}
		pairs = collect(pairs, log, r, n)
	}

	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	todo := make(chan pair)
	var workers sync.WaitGroup
	for range clients {
		workers.Go(func() {
			for p := range todo {
				log.Println("copying key:", p.key)
				if _, err := api.Set(ctx, p.key, p.value, &client.SetOptions{TTL: p.life}); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for _, p := range pairs {
		select {
		case todo <- p:
		case <-ctx.Done():
		}
	}
	close(todo)
	workers.Wait()
	if err := context.Cause(ctx); err != nil {
		return 0, plain("failed to copy key: %v", err)
	}
	return len(pairs), nil
}

// collect adds the keys of a node and of everything below it that is not hidden.
func collect(to []pair, log *log.Logger, p string, n *v2store.DumpNode) []pair {
	if n.Children == nil {
		life := time.Duration(0)
		if !n.ExpireTime.IsZero() {
			life = clock.Until(n.ExpireTime)
			if life < shortLife {
				log.Printf("extending key %s's ttl to %v", p, shortLife)
				life = shortLife
			}
		}
		return append(to, pair{p, n.Value, life})
	}
	log.Println("entering dir:", p)
	for _, name := range slices.Sorted(maps.Keys(n.Children)) {
		if child := n.Children[name]; child != nil && !strings.HasPrefix(name, "_") {
			to = collect(to, log, path.Join(p, name), child)
		}
	}
	return to
}
