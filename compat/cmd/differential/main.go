// Command differential runs one script of requests against two etcd servers and prints every answer that
// differs. It exits with 0 when none differs, 1 when some do, 2 when a server could not be run.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"quorate/compat/differential"
)

func main() {
	a := flag.String("a", "", "path of the first server binary, the reference")
	b := flag.String("b", "", "path of the second server binary, the one under test")
	sections := flag.String("sections", "", "comma-separated sections to run (default all: "+strings.Join(differential.SectionNames(), ",")+")")
	verbose := flag.Bool("v", false, "print every operation with the answer of a")
	maxDiffs := flag.Int("max-diffs", 20, "operations with differences to print in full per section")
	keep := flag.String("keep", "", "directory for data and logs that is kept afterwards (default: a temporary one)")
	flag.Parse()
	if *a == "" || *b == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "differential: -a and -b are required and nothing else is")
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := differential.Options{A: *a, B: *b, Verbose: *verbose, MaxDiffs: *maxDiffs, KeepDir: *keep}
	if *sections != "" {
		o.Sections = strings.Split(*sections, ",")
	}
	res, err := differential.Run(ctx, o, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "differential:", err)
		os.Exit(2)
	}
	fmt.Printf("%d operations in %d sections, %d different\n", res.Operations, res.Sections, res.Different)
	if res.Different > 0 {
		os.Exit(1)
	}
}
