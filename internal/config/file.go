package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.uber.org/zap"
	"sigs.k8s.io/yaml"

	"quorate/internal/suggest"
)

// maxFileBytes bounds the configuration file; what is larger is none.
const maxFileBytes = 8 << 20

// configYAML is the file: the fields of Config under their keys, and the lists
// that are one text with commas. Decoding errors name this type, as etcd's do.
type configYAML struct {
	Config
	configJSON
}

type configJSON struct {
	ListenPeerURLs       string        `json:"listen-peer-urls"`
	ListenClientURLs     string        `json:"listen-client-urls"`
	ListenClientHTTPURLs string        `json:"listen-client-http-urls"`
	ListenMetricsURLs    string        `json:"listen-metrics-urls"`
	AdvertisePeerURLs    string        `json:"initial-advertise-peer-urls"`
	AdvertiseClientURLs  string        `json:"advertise-client-urls"`
	Join                 string        `json:"join"`
	CORS                 string        `json:"cors"`
	HostWhitelist        string        `json:"host-whitelist"`
	FeatureGates         string        `json:"feature-gates"`
	SocketOptions        socketOptions `json:"socket-options"`
}

type socketOptions struct {
	ReusePort    bool `json:"reuse-port"`
	ReuseAddress bool `json:"reuse-address"`
}

// urlsError is a bad URL in the file, which etcd reports in words of its own.
type urlsError struct {
	setting string
	err     error
}

func (e *urlsError) Error() string {
	return fmt.Sprintf("unexpected error setting up %s: %v", e.setting, e.err)
}

func (e *urlsError) Unwrap() error { return e.err }

// fromFile reads the configuration from a file and from nothing else.
func (p *parser) fromFile(path string) (*Config, *Exit, error) {
	c, err := readFile(path)
	if bad := (*urlsError)(nil); asURLsError(err, &bad) {
		fmt.Fprintln(p.stderr, bad)
		return nil, &Exit{exitError}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if err := p.finish(c); err != nil {
		return c, nil, err
	}
	c.lg.Info("loaded server configuration, other configuration command line flags and environment variables will be ignored if provided",
		zap.String("path", path))
	c.warnDeprecated()
	return c, nil, nil
}

func asURLsError(err error, target **urlsError) bool {
	bad, ok := err.(*urlsError)
	*target = bad
	return ok
}

func readFile(path string) (*Config, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, unwrapPath(err))
	}
	if info.Size() > maxFileBytes {
		return nil, fmt.Errorf("read %s: configuration file of %d bytes, more than %d", path, info.Size(), maxFileBytes)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decodeFile(data)
}

// unwrapPath drops the operation and the path that os puts before an error.
func unwrapPath(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}

// decodeFile reads YAML or JSON. Keys that are not known are passed over, as in
// etcd; keys that mean an option by its old name are taken.
func decodeFile(data []byte) (*Config, error) {
	file := &configYAML{Config: *Default()}
	if err := yaml.Unmarshal(data, file); err != nil {
		return nil, err
	}
	c := &file.Config
	var keys map[string]json.RawMessage
	if err := yaml.Unmarshal(data, &keys); err != nil {
		return nil, err
	}
	for key := range keys {
		c.explicit[key] = true
	}
	c.warnUnknown("", keys, reflect.TypeFor[configYAML]())
	if err := c.takeOldKeys(keys); err != nil {
		return nil, err
	}
	if err := c.takeLists(&file.configJSON); err != nil {
		return nil, err
	}
	if err := c.mergeOldNames(); err != nil {
		return nil, err
	}
	if c.InitialCluster == Default().InitialCluster && (c.V2Discovery != "" || c.DiscoverySRV != "" || len(c.Discovery.Client.Endpoints) > 0) {
		c.InitialCluster = ""
	}
	if c.Proxy == "" {
		c.Proxy = ProxyOff
	}
	if c.ClusterState == "" {
		c.ClusterState = StateNew
	}
	if c.SelfSignedCertValidity == 0 {
		c.SelfSignedCertValidity = 1
	}
	return c, nil
}

// warnUnknown warns about keys of the file, or of a section of it, that mean
// nothing here, and names what was probably meant. etcd passes them over.
func (c *Config) warnUnknown(section string, keys map[string]json.RawMessage, of reflect.Type) {
	known := map[string]reflect.Type{}
	collectKeys(of, known)
	if section == "" {
		for _, a := range aliases {
			known[cmp.Or(a.fileKey, a.old)] = nil
		}
		for _, a := range gateAliases {
			known[a.old] = nil
		}
	}
	for _, key := range sortedKeys(keys) {
		t, ok := known[key]
		if !ok && slices.ContainsFunc(sortedKeys(known), func(k string) bool { return strings.EqualFold(k, key) }) {
			continue // the decoder takes it
		}
		if !ok {
			fields := []zap.Field{zap.String("key", section+key)}
			if near := suggest.Nearest(key, sortedKeys(known)); near != "" {
				fields = append(fields, zap.String("did-you-mean", section+near))
			}
			c.warn("the configuration file has a key that means nothing", fields...)
			continue
		}
		var inner map[string]json.RawMessage
		if t != nil && t.Kind() == reflect.Struct && json.Unmarshal(keys[key], &inner) == nil {
			c.warnUnknown(section+key+".", inner, t)
		}
	}
}

// collectKeys adds the keys of the fields of a struct, with the types of those
// that are sections.
func collectKeys(of reflect.Type, known map[string]reflect.Type) {
	for i := range of.NumField() {
		f := of.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && key == "":
			collectKeys(f.Type, known)
		case key != "" && key != "-":
			known[key] = f.Type
		}
	}
}

// takeOldKeys decodes the values of keys that an option had while it was
// experimental into the field of the option.
func (c *Config) takeOldKeys(keys map[string]json.RawMessage) error {
	for _, a := range aliases {
		key := a.old
		if a.fileKey != "" {
			key = a.fileKey
		}
		raw, given := keys[key]
		if !given {
			continue
		}
		c.explicit[a.old] = true
		if a.new == "peer-skip-client-san-verification" {
			if err := json.Unmarshal(raw, &c.PeerTLS.SkipClientSANVerify); err != nil {
				return fmt.Errorf("error unmarshaling %s: %w", key, err)
			}
			continue
		}
		var one bytes.Buffer
		fmt.Fprintf(&one, "{%q:%s}", a.new, raw)
		if err := json.Unmarshal(one.Bytes(), c); err != nil {
			return fmt.Errorf("error unmarshaling %s: %w", key, err)
		}
	}
	for _, a := range gateAliases {
		raw, given := keys[a.old]
		if !given {
			continue
		}
		if err := (gateValue{c, a.old}).Set(string(raw)); err != nil {
			return fmt.Errorf("error unmarshaling %s: %w", a.old, err)
		}
	}
	return nil
}

// takeLists parses the settings that are one text in the file.
func (c *Config) takeLists(l *configJSON) error {
	lists := []struct {
		text    string
		setting string // as etcd names it in the error, right or wrong
		urls    *[]url.URL
	}{
		{l.ListenPeerURLs, "listen-peer-urls", &c.ListenPeerURLs},
		{l.ListenClientURLs, "listen-client-urls", &c.ListenClientURLs},
		{l.ListenClientHTTPURLs, "listen-client-http-urls", &c.ListenClientHTTPURLs},
		{l.AdvertisePeerURLs, "initial-advertise-peer-urls", &c.AdvertisePeerURLs},
		{l.AdvertiseClientURLs, "advertise-peer-urls", &c.AdvertiseClientURLs},
		{l.ListenMetricsURLs, "listen-metrics-urls", &c.ListenMetricsURLs},
		{l.Join, "join", &c.Join},
	}
	if err := c.FeatureGates.Set(l.FeatureGates); err != nil {
		return err
	}
	for _, list := range lists {
		if list.text == "" {
			continue
		}
		urls, err := ParseURLs(strings.Split(list.text, ","))
		if err != nil {
			return &urlsError{list.setting, err}
		}
		*list.urls = urls
	}
	if l.CORS != "" {
		if err := (originsValue{&c.CORS}).Set(l.CORS); err != nil {
			return &urlsError{"cors", err}
		}
	}
	if l.HostWhitelist != "" {
		if err := (setValue{&c.HostWhitelist}).Set(l.HostWhitelist); err != nil {
			return fmt.Errorf("host-whitelist: %w", err)
		}
	}
	c.ReusePort, c.ReuseAddress = l.SocketOptions.ReusePort, l.SocketOptions.ReuseAddress
	return nil
}
