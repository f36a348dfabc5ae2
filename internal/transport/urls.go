package transport

import (
	"errors"
	"sync"

	"go.etcd.io/etcd/client/pkg/v3/types"
)

var errNoURL = errors.New("transport: peer has no usable URL")

// urlPicker selects one of a peer's URLs until it fails, then the next.
type urlPicker struct {
	mu   sync.Mutex
	urls []string // valid and sorted; may be empty
	at   int
}

// set replaces the URLs. Invalid ones are skipped.
func (p *urlPicker) set(urls []string) error {
	valid := make([]string, 0, len(urls))
	var bad error
	for _, u := range urls {
		us, err := types.NewURLs([]string{u})
		if err != nil {
			bad = err
			continue
		}
		valid = append(valid, us[0].String())
	}
	p.mu.Lock()
	p.urls, p.at = valid, 0
	p.mu.Unlock()
	if len(valid) == 0 && bad == nil {
		bad = errNoURL
	}
	return bad
}

// pick returns the current URL.
func (p *urlPicker) pick() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.urls) == 0 {
		return "", errNoURL
	}
	return p.urls[p.at], nil
}

// failed advances to the next URL, unless another caller has already done
// so.
func (p *urlPicker) failed(u string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.urls) > 0 && p.urls[p.at] == u {
		p.at = (p.at + 1) % len(p.urls)
	}
}
