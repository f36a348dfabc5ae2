package monitoring

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"quorate/compat/harness"
)

const limit = 60 * time.Second // for every wait

// prometheus is a real Prometheus that scrapes once a second.
type prometheus struct{ base string }

// startPrometheus starts one on the targets, with the rules in the file.
func startPrometheus(t *testing.T, binary, rules string, targets []string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	addrs, err := harness.FreeAddrs(1)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{ // which is YAML, too
		"global":     map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s"},
		"rule_files": []string{rules},
		"scrape_configs": []any{map[string]any{
			"job_name":       "etcd",
			"static_configs": []any{map[string]any{"targets": targets, "labels": map[string]string{"cluster": "lane"}}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "prometheus.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(binary, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"),
		"--web.listen-address="+addrs[0], "--log.level=warn")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	p := &prometheus{base: "http://" + addrs[0]}
	eventually(t, "Prometheus is ready", func() error {
		select {
		case err := <-ended:
			ended <- err
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("Prometheus ended: %v\n%s", err, b)
		default:
		}
		resp, err := client.Get(p.base + "/-/ready")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("ready: %s", resp.Status)
		}
		return nil
	})
	return p
}

var client = &http.Client{Timeout: 20 * time.Second}

// get requests path from the API and decodes the data of its answer.
func (p *prometheus) get(ctx context.Context, path string, args url.Values, data any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.base+"/api/v1/"+path+"?"+args.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          json.RawMessage
	}{}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("%s: %s: %w", path, resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", path, answer.Error)
	}
	return json.Unmarshal(answer.Data, data)
}

// results is the number of series that the expression returns now.
func (p *prometheus) results(ctx context.Context, expr string) (int, error) {
	var data struct{ Result []json.RawMessage }
	err := p.get(ctx, "query", url.Values{"query": {expr}}, &data)
	return len(data.Result), err
}

// exists reports whether the selector has matched a series since the start.
func (p *prometheus) exists(ctx context.Context, selector string) (bool, error) {
	var series []json.RawMessage
	err := p.get(ctx, "series", url.Values{"match[]": {selector}, "limit": {"1"}}, &series)
	return len(series) > 0, err
}

// selectors lists what the expression selects, as Prometheus' own parser sees it.
func (p *prometheus) selectors(ctx context.Context, expr string) ([]string, error) {
	var tree any
	if err := p.get(ctx, "parse_query", url.Values{"query": {expr}}, &tree); err != nil {
		return nil, err
	}
	var found []string
	var walk func(any) error
	walk = func(node any) error {
		switch node := node.(type) {
		case []any:
			for _, n := range node {
				if err := walk(n); err != nil {
					return err
				}
			}
		case map[string]any:
			if kind := node["type"]; kind == "vectorSelector" || kind == "matrixSelector" {
				s, err := selector(node["matchers"])
				if err != nil {
					return fmt.Errorf("%s: %w", expr, err)
				}
				found = append(found, s)
			}
			for _, n := range node {
				if err := walk(n); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err := walk(tree)
	return found, err
}

func selector(matchers any) (string, error) {
	list, ok := matchers.([]any)
	if !ok || len(list) == 0 {
		return "", fmt.Errorf("a selector without matchers: %v", matchers)
	}
	var parts []string
	for _, m := range list {
		m, _ := m.(map[string]any)
		name, ok1 := m["name"].(string)
		op, ok2 := m["type"].(string)
		value, ok3 := m["value"].(string)
		if !ok1 || !ok2 || !ok3 {
			return "", fmt.Errorf("an invalid matcher: %v", m)
		}
		parts = append(parts, fmt.Sprintf("%s%s%q", name, op, value))
	}
	return "{" + strings.Join(parts, ",") + "}", nil
}

// rule is one that Prometheus has loaded.
type rule struct {
	Type, Name, Query, Health, LastError string
	Labels, Annotations                  map[string]string
}

func (p *prometheus) rules(ctx context.Context) ([]rule, error) {
	var data struct{ Groups []struct{ Rules []rule } }
	if err := p.get(ctx, "rules", nil, &data); err != nil {
		return nil, err
	}
	var all []rule
	for _, g := range data.Groups {
		all = append(all, g.Rules...)
	}
	return all, nil
}

// alert is one that is pending or firing.
type alert struct {
	State               string
	Labels, Annotations map[string]string
}

func (p *prometheus) alerts(ctx context.Context) ([]alert, error) {
	var data struct{ Alerts []alert }
	err := p.get(ctx, "alerts", nil, &data)
	return data.Alerts, err
}

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	end := time.Now().Add(limit)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		<-tick.C
	}
}
