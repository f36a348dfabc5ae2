package child

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// V2Answer is a server's response to a request of the v2 API.
type V2Answer struct {
	Status int
	Index  uint64 // X-Etcd-Index
	Body   string
}

// V2 sends a request for a path below /v2/keys, with an optional query, to the server at addr; form, unless nil,
// is its body.
func V2(limit time.Duration, method, addr, path string, form url.Values) (V2Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+"/v2/keys"+path, strings.NewReader(form.Encode()))
	if err != nil {
		return V2Answer{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return V2Answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return V2Answer{}, err
	}
	index, _ := strconv.ParseUint(resp.Header.Get("X-Etcd-Index"), 10, 64) // some errors have none
	return V2Answer{Status: resp.StatusCode, Index: index, Body: strings.TrimSpace(string(body))}, nil
}
