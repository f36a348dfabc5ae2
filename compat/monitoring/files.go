package monitoring

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// query is an expression with its position in the file.
type query struct{ where, expr string }

// dashboard is the relevant part of Grafana's format.
type dashboard struct {
	Title, UID  string
	Panels      []panel
	Templating  struct{ List []variable }
	Annotations struct{ List []struct{ Name, Expr string } }
}

type panel struct {
	ID          int
	Type, Title string
	Description string
	GridPos     struct{ H, W, X, Y int }
	Panels      []panel
	Targets     []struct{ RefID, Expr, LegendFormat string }
}

type variable struct{ Name, Type, Definition, AllValue string }

func readDashboard(path string) (*dashboard, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d := &dashboard{}
	return d, json.Unmarshal(b, d)
}

// panels lists all panels with queries, also those inside rows.
func panels(all []panel) (shown []panel) {
	for _, p := range all {
		if p.Type != "row" {
			shown = append(shown, p)
		}
		shown = append(shown, panels(p.Panels)...)
	}
	return shown
}

var dollar = regexp.MustCompile(`\$\{?(\w+)\}?`)

// expand substitutes what Grafana does while all clusters, jobs and members are selected.
func expand(expr string, variables map[string]string) (string, error) {
	var unknown []string
	expr = dollar.ReplaceAllStringFunc(expr, func(s string) string {
		v, ok := variables[strings.Trim(s, "${}")]
		if !ok {
			unknown = append(unknown, s)
		}
		return v
	})
	if len(unknown) > 0 {
		return "", fmt.Errorf("%s: unknown variables %q", expr, unknown)
	}
	return expr, nil
}

// ruleTests is the relevant part of promtool's format.
type ruleTests struct {
	Tests []struct {
		Name           string
		AlertRuleTests []struct {
			AlertName string `json:"alertname"`
			Expected  []struct {
				Labels map[string]string `json:"exp_labels"`
			} `json:"exp_alerts"`
		} `json:"alert_rule_test"`
	}
}

// ruleFile is the relevant part of Prometheus' format.
type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Record, Expr string
			Labels, Annotations map[string]string
		}
	}
}

func readYAML(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return yaml.Unmarshal(b, into)
}
