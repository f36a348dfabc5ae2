package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// writeSBOM lists, in CycloneDX, the modules that are in each program. It asks
// the programs: what the linker has put in is what is listed.
func writeSBOM(s *stage, out string) error {
	modules, byProgram, err := s.modules()
	if err != nil {
		return err
	}
	name := s.name(s.arch)
	root := cdx.Component{BOMRef: name, Type: cdx.ComponentTypeApplication, Name: "quorate", Version: s.version,
		Description: "linux/" + s.arch + ", commit " + s.commit, Licenses: licensed()}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: s.date.Format(time.RFC3339), Component: &root}
	var components []cdx.Component
	var deps []cdx.Dependency
	of := append([]string{}, programs...)
	deps = append(deps, cdx.Dependency{Ref: name, Dependencies: &of})
	for _, p := range programs {
		sum, err := sumOf(s.program(p))
		if err != nil {
			return err
		}
		components = append(components, cdx.Component{BOMRef: p, Type: cdx.ComponentTypeApplication, Name: p, Version: s.version, Licenses: licensed(),
			Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: fmt.Sprintf("%x", sum)}}})
		refs := byProgram[p]
		deps = append(deps, cdx.Dependency{Ref: p, Dependencies: &refs})
	}
	for _, ref := range slices.Sorted(maps.Keys(modules)) {
		m := modules[ref]
		c := cdx.Component{BOMRef: ref, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: ref}
		// The sum of go.sum is one over the names and sums of the module's files.
		if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && len(sum) == sha256.Size {
			c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: fmt.Sprintf("%x", sum)}}
		}
		components = append(components, c)
	}
	bom.Components, bom.Dependencies = &components, &deps
	bom.SerialNumber = serial(name + s.commit)
	return writeFile(filepath.Join(out, name+".cdx.json"), func(w io.Writer) error {
		e := cdx.NewBOMEncoder(w, cdx.BOMFileFormatJSON)
		e.SetPretty(true)
		return e.EncodeVersion(bom, cdx.SpecVersion1_6)
	})
}

func licensed() *cdx.Licenses {
	return &cdx.Licenses{{License: &cdx.License{ID: "Apache-2.0"}}}
}

// modules are those in any of the programs, by package URL, and the URLs of
// those in each. Go's own library is one of them.
func (s *stage) modules() (map[string]debug.Module, map[string][]string, error) {
	all, byProgram := map[string]debug.Module{}, map[string][]string{}
	for _, p := range programs {
		info, err := buildinfo.ReadFile(s.program(p))
		if err != nil {
			return nil, nil, err
		}
		in := []debug.Module{{Path: "std", Version: strings.TrimPrefix(info.GoVersion, "go")}}
		for _, m := range info.Deps {
			if m.Replace != nil {
				m = m.Replace
			}
			in = append(in, *m)
		}
		for _, m := range in {
			ref := "pkg:golang/" + m.Path + "@" + m.Version
			all[ref] = m
			byProgram[p] = append(byProgram[p], ref)
		}
		slices.Sort(byProgram[p])
	}
	return all, byProgram, nil
}

// serial is a UUID that the same text always gives.
func serial(text string) string {
	h := sha256.Sum256([]byte(text))
	h[6], h[8] = h[6]&0x0f|0x80, h[8]&0x3f|0x80 // version 8, made by our own rule
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])
}
