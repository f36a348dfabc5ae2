package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
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

// maxFileBytes bounds the configuration file; a larger file is rejected.
const maxFileBytes = 8 << 20

// textKeys are the settings that the file holds as one comma-separated string.
type textKeys struct {
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

// sections are the parts of the file that are objects with keys of their own.
func sections(c *Config) map[string]any {
	return map[string]any{
		"client-transport-security": &c.ClientTLS, "peer-transport-security": &c.PeerTLS, "discovery-config": &c.Discovery,
	}
}

// keysOf returns the file as a struct for decoders: a field for each key, pointing to where
// the value belongs. The keys are the names of the options.
func keysOf(c *Config, texts *textKeys) reflect.Value {
	plain, own := new(structOf), new(structOf)
	for t, i := reflect.ValueOf(texts).Elem(), 0; i < t.NumField(); i++ {
		own.add(t.Type().Field(i).Tag.Get("json"), t.Field(i).Addr())
	}
	for _, o := range options {
		if p := target(o.field(c)); p != nil && !o.noKey && !slices.Contains(own.keys, o.name) {
			plain.add(o.name, reflect.ValueOf(p))
		}
	}
	for key, p := range sections(c) {
		plain.add(key, reflect.ValueOf(p))
	}
	// One struct embedded in another, as in etcd, so that the YAML decoder does not accept
	// a number for a string.
	file := reflect.New(reflect.StructOf([]reflect.StructField{
		{Name: "Config", Type: plain.typ(), Anonymous: true}, {Name: "ConfigJSON", Type: own.typ(), Anonymous: true}})).Elem()
	plain.fill(file.Field(0))
	own.fill(file.Field(1))
	return file
}

// structOf builds a struct of pointers, one for each key.
type structOf struct {
	keys []string
	ptrs []reflect.Value
}

func (s *structOf) add(key string, p reflect.Value) {
	s.keys, s.ptrs = append(s.keys, key), append(s.ptrs, p)
}

func (s *structOf) typ() reflect.Type {
	fields := make([]reflect.StructField, len(s.keys))
	for i, key := range s.keys {
		fields[i] = reflect.StructField{Name: fmt.Sprintf("F%d", i), Type: s.ptrs[i].Type(), Tag: reflect.StructTag(fmt.Sprintf("json:%q", key))}
	}
	return reflect.StructOf(fields)
}

func (s *structOf) fill(v reflect.Value) {
	for i, p := range s.ptrs {
		v.Field(i).Set(p)
	}
}

// target returns the variable behind the value of an option, nil if the option's text sets
// more than one.
func target(field any) any {
	switch v := field.(type) {
	case uint32Value:
		return v.p
	case setValue:
		return v.p
	case listValue:
		return v.p
	case enumValue:
		return v.p
	case enumsValue:
		return v.p
	case flag.Value:
		return nil
	}
	return field
}

// decodeKeys decodes data into the struct file of keysOf.
func decodeKeys(decode func([]byte, any) error, data []byte, file reflect.Value) error {
	was := reflect.New(file.Type()).Elem()
	was.Set(file)
	if err := decode(data, file.Addr().Interface()); err != nil {
		return inEtcdsNames(err)
	}
	for i := range file.NumField() {
		for j := range file.Field(i).NumField() {
			// In a list null is an empty list; for any other value, it is as if the key
			// were absent.
			if p := was.Field(i).Field(j); file.Field(i).Field(j).IsNil() && p.Type().Elem().Kind() == reflect.Slice {
				p.Elem().SetZero()
			}
		}
	}
	return nil
}

// etcdsNames maps our type names to etcd's, as they occur in decoding errors.
var etcdsNames = map[string]string{
	"": "configYAML", "Files": "securityConfig", "Config": "DiscoveryConfig", "Client": "ConfigSpec",
	"Secure": "SecureConfig", "Auth": "AuthConfig", "socketOptions": "SocketOpts",
}

// inEtcdsNames rewrites the type names in a decoding error to etcd's.
func inEtcdsNames(err error) error {
	wrong := (*json.UnmarshalTypeError)(nil)
	if !errors.As(err, &wrong) {
		return err
	}
	named := *wrong
	if name, ok := etcdsNames[named.Struct]; ok {
		named.Struct = name
	}
	section, inText := strings.CutPrefix(named.Field, "ConfigJSON.")
	if inText && !strings.HasPrefix(section, "socket-options") {
		named.Field = "configJSON." + section
	} else if inText {
		named.Field = "Config." + section
	}
	if strings.HasPrefix(named.Field, "Config.client-transport-security") || strings.HasPrefix(named.Field, "Config.peer-transport-security") {
		named.Field = "configJSON." + strings.TrimPrefix(named.Field, "Config.")
	}
	return errors.New(etcdsTypes.Replace(strings.Replace(err.Error(), wrong.Error(), named.Error(), 1)))
}

var etcdsTypes = strings.NewReplacer("of type certs.Files", "of type embed.securityConfig", "of type config.socketOptions", "of type transport.SocketOpts",
	"of type discovery.Config", "of type v3discovery.DiscoveryConfig")

// urlsError is an invalid URL in the file, which etcd reports with a text of its own.
type urlsError struct {
	setting string
	err     error
}

func (e *urlsError) Error() string {
	return fmt.Sprintf("unexpected error setting up %s: %v", e.setting, e.err)
}

func (e *urlsError) Unwrap() error { return e.err }

// fromFile reads the configuration from the file alone.
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
	p.warnDeprecated(c)
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

// unwrapPath strips the operation and the path that os puts in front of an error.
func unwrapPath(err error) error {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err
	}
	return err
}

// fileReader fills a configuration from a file.
type fileReader struct{ *Config }

// decodeFile decodes YAML or JSON. Unknown keys are skipped, as in etcd; former names of
// options are accepted.
func decodeFile(data []byte) (*Config, error) {
	c, texts := Default(), new(textKeys)
	file := keysOf(c, texts)
	if err := decodeKeys(func(data []byte, into any) error { return yaml.Unmarshal(data, into) }, data, file); err != nil {
		return nil, err
	}
	var keys map[string]json.RawMessage
	if err := yaml.Unmarshal(data, &keys); err != nil {
		return nil, err
	}
	for key := range keys {
		c.explicit[key] = true
	}
	r := fileReader{c}
	r.warnUnknown("", keys, file.Type())
	if err := r.takeOldKeys(keys); err != nil {
		return nil, err
	}
	if err := r.takeLists(texts); err != nil {
		return nil, err
	}
	if err := mergeOldNames(c); err != nil {
		return nil, err
	}
	if c.InitialCluster == Default().InitialCluster && (c.V2Discovery.URL != "" || c.SRV.Domain != "" || len(c.Discovery.Client.Endpoints) > 0) {
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

// warnUnknown warns about unknown keys of the file, or of one of its sections, and suggests
// the name that was probably meant. etcd skips them silently.
func (c fileReader) warnUnknown(section string, keys map[string]json.RawMessage, of reflect.Type) {
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
			continue // the decoder accepts it
		}
		if !ok {
			fields := []zap.Field{zap.String("key", section+key)}
			if near := suggest.Nearest(key, sortedKeys(known)); near != "" {
				fields = append(fields, zap.String("did-you-mean", section+near))
			}
			c.warn("unknown key in the configuration file", fields...)
			continue
		}
		var inner map[string]json.RawMessage
		if t != nil && t.Kind() == reflect.Struct && json.Unmarshal(keys[key], &inner) == nil {
			c.warnUnknown(section+key+".", inner, t)
		}
	}
}

// collectKeys adds the keys of a struct's fields, with the types of those that are
// sections.
func collectKeys(of reflect.Type, known map[string]reflect.Type) {
	for i := range of.NumField() {
		f := of.Field(i)
		t := f.Type
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && key == "":
			collectKeys(t, known)
		case key != "" && key != "-":
			known[key] = t
		}
	}
}

// takeOldKeys decodes the values of an option's former, experimental key into the option's
// field.
func (c fileReader) takeOldKeys(keys map[string]json.RawMessage) error {
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
		if err := decodeKeys(json.Unmarshal, one.Bytes(), keysOf(c.Config, new(textKeys))); err != nil {
			return fmt.Errorf("error unmarshaling %s: %s", key, strings.Replace(err.Error(), "configYAML.", "", 1))
		}
	}
	for _, a := range gateAliases {
		raw, given := keys[a.old]
		if !given {
			continue
		}
		if err := (gateValue{c.Config, a.old}).Set(string(raw)); err != nil {
			return fmt.Errorf("error unmarshaling %s: %w", a.old, err)
		}
	}
	return nil
}

// takeLists parses the settings that the file holds as one string.
func (c fileReader) takeLists(l *textKeys) error {
	lists := []struct {
		text    string
		setting string // etcd names this flag in the error, right or wrong
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
		if err := (originsValue{&c.Pages.CORS}).Set(l.CORS); err != nil {
			return &urlsError{"cors", err}
		}
	}
	if l.HostWhitelist != "" {
		if err := (setValue{&c.Pages.HostWhitelist}).Set(l.HostWhitelist); err != nil {
			return fmt.Errorf("host-whitelist: %w", err)
		}
	}
	c.ReusePort, c.ReuseAddress = l.SocketOptions.ReusePort, l.SocketOptions.ReuseAddress
	return nil
}
