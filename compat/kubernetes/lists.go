package kubernetes

import (
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"quorate/compat/child"
)

// list is the content of a list: the number of each object's version, and the revision of the list.
type list struct {
	numbers  map[string]string
	revision string
	pages    int
}

// list lists a kind, page by page if the options have a limit.
func (c *control) list(k *kind, options metav1.ListOptions) (*list, error) {
	all := &list{numbers: map[string]string{}}
	for {
		ctx, cancel := requestContext()
		page, err := k.in(c).List(ctx, options)
		cancel()
		if err != nil {
			return nil, err
		}
		all.pages++
		if all.revision == "" {
			all.revision = page.GetResourceVersion()
		}
		if page.GetResourceVersion() != all.revision {
			return nil, fmt.Errorf("page %d of %s has revision %s, the first has %s", all.pages, k.resource, page.GetResourceVersion(), all.revision)
		}
		for i := range page.Items {
			o := &page.Items[i]
			if _, twice := all.numbers[o.GetName()]; twice {
				return nil, fmt.Errorf("%s %s is on two pages", k.Kind, o.GetName())
			}
			all.numbers[o.GetName()] = k.number(o)
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return all, nil
		}
		options.ResourceVersion, options.ResourceVersionMatch = "", "" // the token has them
	}
}

func (c *control) mustList(k *kind, options metav1.ListOptions) *list {
	c.Helper()
	l, err := c.list(k, options)
	if err != nil {
		c.Fatalf("list %s with %+v: %v", k.resource, options, err)
	}
	return l
}

// difference describes where a list differs from what was written.
func difference(want, got map[string]string) string {
	var b strings.Builder
	for name, n := range want {
		if got[name] != n {
			fmt.Fprintf(&b, "%s: want %s, got %q\n", name, n, got[name])
		}
	}
	for name, n := range got {
		if _, ok := want[name]; !ok {
			fmt.Fprintf(&b, "%s: not wanted, got %s\n", name, n)
		}
	}
	return b.String()
}

// expected is what a kind must hold while no client writes.
func expected(lives map[string]*life) map[string]string {
	want := map[string]string{}
	for name, l := range lives {
		if l.number != "" {
			want[name] = l.number
		}
	}
	return want
}

// finds checks by every way to list that a kind holds what was written, and that pages at one revision fit
// together while others write.
func (c *control) finds(k *kind, want map[string]string) {
	c.Helper()
	now := c.mustList(k, metav1.ListOptions{})
	for name, options := range map[string]metav1.ListOptions{
		"all, consistent":        {},
		"pages, consistent":      {Limit: 7},
		"not older than now":     {ResourceVersion: now.revision, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan},
		"pages, not older":       {ResourceVersion: now.revision, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, Limit: 7},
		"exactly now":            {ResourceVersion: now.revision, ResourceVersionMatch: metav1.ResourceVersionMatchExact},
		"pages, exactly now":     {ResourceVersion: now.revision, ResourceVersionMatch: metav1.ResourceVersionMatchExact, Limit: 7},
		"pages, from some store": {ResourceVersion: "0", Limit: 1000},
	} {
		got := c.mustList(k, options)
		if d := difference(want, got.numbers); d != "" && options.ResourceVersion != "0" {
			c.Errorf("list of %s (%s) at %s:\n%s", k.resource, name, got.revision, d)
		}
		if options.Limit == 7 && got.pages < len(want)/7 && options.ResourceVersionMatch != metav1.ResourceVersionMatchNotOlderThan {
			c.Errorf("list of %s (%s): %d objects on %d pages", k.resource, name, len(got.numbers), got.pages)
		}
	}
}

// forgets waits until the apiserver has compacted a revision away: a list of it, and a watch from it, are
// refused as expired instead of being answered with something else.
func (c *control) forgets(k *kind, revision string) {
	c.Helper()
	child.Eventually(c, limit, "revision "+revision+" is compacted", func() error {
		_, err := c.list(k, metav1.ListOptions{ResourceVersion: revision, ResourceVersionMatch: metav1.ResourceVersionMatchExact})
		if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			return nil
		}
		return fmt.Errorf("a list of it says %w", err)
	})
}

// initial reads a kind by a watch that begins with the current state (WatchList), up to the bookmark that ends
// it.
func (c *control) initial(k *kind) map[string]string {
	c.Helper()
	ctx, cancel := requestContext()
	defer cancel()
	yes := true
	w, err := k.in(c).Watch(ctx, metav1.ListOptions{SendInitialEvents: &yes, AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan})
	must(c, err)
	defer w.Stop()
	numbers := map[string]string{}
	for e := range w.ResultChan() {
		o, ok := e.Object.(*unstructured.Unstructured)
		if !ok {
			c.Fatalf("initial events of %s: %v", k.resource, e.Object)
		}
		if o.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true" {
			return numbers
		}
		numbers[o.GetName()] = k.number(o)
	}
	c.Fatalf("the initial events of %s end without a bookmark after %d", k.resource, len(numbers))
	return nil
}

// stored is what the store itself holds of a kind, by the keys that the apiserver builds.
func (s *store) stored(k *kind) []string {
	s.Helper()
	prefix := "/registry/" + k.path + "/" + namespace + "/"
	var names []string
	for line := range strings.Lines(s.ctl("get", "--prefix", "--keys-only", prefix)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), prefix); ok {
			names = append(names, name)
		}
	}
	return names
}
