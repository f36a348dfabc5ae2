package logging

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Flags are the values of flags about the log that have another form than Options.
type Flags struct {
	Logger        string // zap or capnslog
	PackageLevels string
	Debug         bool // the former flag for log level debug
	Rotate        bool
	Rotation      string // JSON with the fields of Rotation
}

// DefaultFlags returns the flags that were not set.
func DefaultFlags() Flags {
	return Flags{Logger: "zap", Rotation: `{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}`}
}

// Apply completes o with the flags. The warnings are for the log that o describes.
func (f Flags) Apply(o *Options) (warnings []string, err error) {
	switch f.Logger {
	case "zap":
	case "capnslog":
		o.Format = FormatCapnslog
		warnings = append(warnings, "--logger=capnslog was removed in etcd v3.5; lines have its form, use --logger=zap for JSON")
	default:
		return nil, fmt.Errorf("unknown logger option %q", f.Logger)
	}
	if o.Rotation, err = f.rotation(o.Outputs); err != nil {
		return nil, err
	}
	if o.Packages, err = ParsePackageLevels(f.PackageLevels); err != nil {
		return nil, err
	}
	if f.PackageLevels != "" {
		warnings = append(warnings, fmt.Sprintf("Deprecated '--log-package-levels=%s' flag is set; use '--log-level' instead", f.PackageLevels))
	}
	if f.Debug {
		o.Level = "debug"
		warnings = append(warnings, "Deprecated '--debug' flag is set to true (use '--log-level=debug' instead)")
	}
	return warnings, nil
}

// rotation returns nil unless rotation was asked for.
func (f Flags) rotation(outputs []string) (*Rotation, error) {
	if !f.Rotate {
		return nil, nil
	}
	files := 0
	for _, out := range outputs {
		switch out {
		case OutputDefault, OutputStderr, OutputStdout:
		default:
			files++
		}
	}
	if files > 1 || (files == 0 && len(outputs) == 1) {
		return nil, errors.New("--log-outputs requires a single file path when --log-rotate-config-json is defined")
	}
	rotation := &Rotation{}
	err := json.Unmarshal([]byte(f.Rotation), rotation)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		return nil, fmt.Errorf("improperly formatted log rotation config: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("invalid log rotation config: %w", err)
	}
	return rotation, nil
}
