package kubernetes

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"quorate/compat/harness"
)

// What load does, by concurrent clients.
const (
	loaders    = 16
	loadObject = 40 // of each kind and loader
)

// load is the same work for every store, without faults: how long it takes, and what it costs.
func (j *journey) load() {
	j.Helper()
	for _, step := range []struct {
		name string
		each func(k *kind, name string, n int) error
	}{
		{"create", func(k *kind, name string, n int) error {
			ctx, cancel := requestContext()
			defer cancel()
			_, err := k.in(j).Create(ctx, k.object(name, "", n), metav1.CreateOptions{})
			return err
		}},
		{"read and update", func(k *kind, name string, n int) error {
			ctx, cancel := requestContext()
			defer cancel()
			o, err := k.in(j).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			_, err = k.in(j).Update(ctx, k.object(name, o.GetResourceVersion(), n+1), metav1.UpdateOptions{})
			return err
		}},
		{"list by pages of 100", func(k *kind, name string, n int) error {
			if n%40 > 3 {
				return nil
			}
			l, err := j.list(k, metav1.ListOptions{Limit: 100})
			if err == nil && len(l.numbers) != loaders*loadObject {
				err = fmt.Errorf("%d objects of %s are listed", len(l.numbers), k.resource)
			}
			return err
		}},
		{"delete", func(k *kind, name string, n int) error {
			ctx, cancel := requestContext()
			defer cancel()
			return k.in(j).Delete(ctx, name, metav1.DeleteOptions{})
		}},
	} {
		j.measure(step.name, step.each)
	}
	requests, failed := j.etcdRequests()
	j.note("load: %d requests of the apiserver to the store, %.2f ms each, %d failed %q", requests.count, 1000*requests.seconds/float64(requests.count), requests.errors, failed)
	if requests.errors > 0 && j.retries.Load() == 0 {
		j.Errorf("the apiserver counts failed requests to the store without any fault, and no client saw one: %q", failed)
	}
	if n := j.retries.Load(); n > 0 {
		j.note("load: %d requests failed and were made again: the machine is too busy for the figures to mean anything", n)
	}
}

// measure has the loaders process all objects once.
func (j *journey) measure(name string, each func(k *kind, name string, n int) error) {
	j.Helper()
	before, apiBefore, began := j.CPU(), j.apiCPU(), time.Now()
	errs := make([]error, loaders)
	var wg sync.WaitGroup
	for i := range loaders {
		wg.Go(func() {
			for n := range loadObject * len(kinds) {
				if errs[i] = j.patiently(func() error { return each(kinds[n%len(kinds)], fmt.Sprintf("load-%d-%d", i, n/len(kinds)), n) }); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	for _, err := range errs {
		if err != nil {
			j.Fatalf("%s: %v", name, err)
		}
	}
	j.note("load: %s: %.1fs, CPU of the members %.1fs, of the apiserver %.1fs", name, took.Seconds(), (j.CPU() - before).Seconds(), (j.apiCPU() - apiBefore).Seconds())
}

// patiently retries a request that failed, as may happen by a timeout on a busy machine. The failed request may
// have been carried out.
func (j *journey) patiently(request func() error) error {
	err := request()
	for tries := 0; err != nil && tries < 5; tries++ {
		j.retries.Add(1)
		if err = request(); apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
			return nil
		}
	}
	return err
}

func (j *journey) apiCPU() time.Duration {
	d, err := harness.CPU(j.process.PID())
	must(j, err)
	return d
}

// klog is a line of the apiserver's log of level warning or error.
var (
	klog     = regexp.MustCompile(`^([EW])\d{4} [\d:.]+ +\d+ ([\w.-]+\.go):\d+\] (.*)`)
	specific = regexp.MustCompile(`[\w./:%-]*\d[\w./:%-]*`)
)

// complaints counts such lines by kind, ignoring what differs between lines of a kind.
func complaints(log string) []string {
	count := map[string]int{}
	for line := range strings.Lines(log) {
		if m := klog.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			text := specific.ReplaceAllString(m[3], "…")
			count[fmt.Sprintf("%s %s %.200s", m[1], m[2], text)]++
		}
	}
	var kinds []string
	for k, n := range count {
		kinds = append(kinds, fmt.Sprintf("%s (%d)", k, n))
	}
	slices.Sort(kinds)
	return kinds
}

// usual are lines that an apiserver writes in this environment with real etcd too: about itself, and about
// namespaces that are just being created.
var usual = []string{
	"E options.go The manifest file is empty",
	`E controller.go "Failed to ensure lease exists, will retry" err="namespaces \"kube-system\" not found"`,
	`E controller.go "Error while syncing ConfigMap" err="namespaces \"kube-system\" not found"`,
	"W genericapiserver.go Skipping API",
	"W lease.go Resetting endpoints for master service",
}

// complaints fails the test if the log has any unusual complaint while no fault was injected into the store.
func (j *journey) complaints(when string) {
	j.Helper()
	for _, c := range complaints(j.log()) {
		if !slices.ContainsFunc(usual, func(u string) bool { return strings.HasPrefix(c, u) }) {
			j.Errorf("%s the apiserver's log says: %s", when, c)
		}
	}
}

// saveLogs copies the logs to the directory of -keep.
func (c *control) saveLogs() {
	if *keep == "" {
		return
	}
	dir := filepath.Join(*keep, c.Name())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.Log(err)
		return
	}
	_ = os.WriteFile(filepath.Join(dir, "apiserver.log"), []byte(c.log()), 0o644)
	for i := 1; i <= size; i++ {
		_ = os.WriteFile(filepath.Join(dir, node(i)+".log"), []byte(c.members[i].Output()), 0o644)
	}
}
