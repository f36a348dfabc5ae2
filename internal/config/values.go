package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// urlsValue is a comma-separated list of URLs without duplicates. An empty text leaves the
// value unchanged.
type urlsValue struct{ p *[]url.URL }

func (v urlsValue) Set(s string) error {
	if s == "" {
		return nil
	}
	urls, err := ParseURLs(strings.Split(s, ","))
	if err != nil {
		return err
	}
	*v.p = slices.CompactFunc(urls, func(a, b url.URL) bool { return a.String() == b.String() })
	return nil
}

func (v urlsValue) String() string {
	if v.p == nil {
		return ""
	}
	return strings.Join(URLStrings(*v.p), ",")
}

// originsValue is a list of URLs, or "*".
type originsValue struct{ p *[]string }

func (v originsValue) Set(s string) error {
	if s == "*" || s == "" { // the default, today and in old guides
		*v.p = []string{"*"}
		return nil
	}
	urls, err := ParseURLs(strings.Split(s, ","))
	if err != nil {
		return err
	}
	*v.p = slices.Compact(URLStrings(urls))
	return nil
}

func (v originsValue) String() string { return joinStrings(v.p) }

// setValue is a comma-separated list that is sorted and has no duplicates.
type setValue struct{ p *[]string }

func (v setValue) Set(s string) error {
	list := strings.Split(s, ",")
	slices.Sort(list)
	*v.p = slices.Compact(list)
	return nil
}

func (v setValue) String() string { return joinStrings(v.p) }

// listValue is a comma-separated list in the order given.
type listValue struct{ p *[]string }

func (v listValue) Set(s string) error {
	*v.p = strings.Split(s, ",")
	return nil
}

func (v listValue) String() string { return joinStrings(v.p) }

func joinStrings(p *[]string) string {
	if p == nil {
		return ""
	}
	return strings.Join(*p, ",")
}

// enumValue is one of a few words.
type enumValue struct {
	p     *string
	words []string
}

func (v enumValue) Set(s string) error {
	if !slices.Contains(v.words, s) {
		return errors.New("invalid value")
	}
	*v.p = s
	return nil
}

func (v enumValue) String() string {
	if v.p == nil {
		return ""
	}
	return *v.p
}

// enumsValue is a list of a few allowed words.
type enumsValue struct {
	p     *string
	words []string
}

func (v enumsValue) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		if !slices.Contains(v.words, word) {
			return fmt.Errorf("invalid value %q", word)
		}
	}
	*v.p = s
	return nil
}

func (v enumsValue) String() string {
	if v.p == nil {
		return ""
	}
	return *v.p
}

// uint32Value is a 32-bit number.
type uint32Value struct{ p *uint32 }

func (v uint32Value) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return err
	}
	*v.p = uint32(n)
	return nil
}

func (v uint32Value) String() string {
	if v.p == nil {
		return ""
	}
	return strconv.FormatUint(uint64(*v.p), 10)
}

// ignoredValue is a flag that old unit files still set. It takes a value with "=" only, as
// a boolean flag does.
type ignoredValue struct {
	c    *Config
	name string
}

func (ignoredValue) IsBoolFlag() bool { return true }
func (ignoredValue) String() string   { return "" }

func (v ignoredValue) Set(string) error {
	v.c.warn(fmt.Sprintf(`flag "-%s" is no longer supported - ignoring.`, v.name))
	return nil
}
