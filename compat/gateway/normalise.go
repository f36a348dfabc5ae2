package gateway

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// masked are the fields whose value is specific to one server: only their presence is compared.
var masked = map[string]bool{
	"raft_term": true, "raftTerm": true, // how many elections a start took
	"raftIndex": true, "raftAppliedIndex": true,
	"dbSize": true, "dbSizeInUse": true, // of the storage engine
	"token": true, // random
	"blob":  true, "remaining_bytes": true,
}

// normalise makes bodies comparable. The JSON of the protobuf library has spaces that depend on the bytes of the
// binary, inside its error texts too, so the JSON is encoded again.
func normalise(body []byte) string {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil || d.More() {
		return string(body)
	}
	b, err := json.Marshal(mask(v))
	if err != nil {
		return string(body)
	}
	if bytes.HasSuffix(body, []byte("\n")) {
		b = append(b, '\n')
	}
	return oneBlank(string(b))
}

func oneBlank(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\u00a0", " "), "  ", " ")
}

func mask(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if masked[k] {
				v[k] = "(there)"
			} else {
				v[k] = mask(x)
			}
		}
	case []any:
		for i := range v {
			v[i] = mask(v[i])
		}
	}
	return v
}

// describe prints an answer without its date and its length, which depends on the spaces in the body.
func describe(r *http.Response, body string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", r.Proto, r.Status)
	for _, k := range slices.Sorted(maps.Keys(r.Header)) {
		if k != "Date" && k != "Content-Length" {
			fmt.Fprintf(&b, "%s: %q\n", k, r.Header[k])
		}
	}
	fmt.Fprintf(&b, "transfer encoding %q\n\n%s", r.TransferEncoding, body)
	return b.String()
}
