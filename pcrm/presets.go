package pcrm

import (
	_ "embed"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/pelletier/go-toml/v2"
)

//go:embed presets.toml
var presetsTOML string

// Preset is a published setting: a constraint and the prior that it was chosen for.
type Preset struct {
	Name       string
	Prior      string // "length_ratio", "cosine", "fixed" or "random"
	Constraint Constraint
}

var presets = sync.OnceValues(func() (map[string]Preset, error) {
	var rows map[string]struct {
		Prior               string
		Beta1, Beta2, Beta3 float64
		Delta, Low, High    float64
	}
	if err := toml.NewDecoder(strings.NewReader(presetsTOML)).DisallowUnknownFields().Decode(&rows); err != nil {
		return nil, err
	}
	table := make(map[string]Preset, len(rows))
	for name, row := range rows {
		c := Constraint{Beta1: row.Beta1, Beta2: row.Beta2, Beta3: row.Beta3, Low: row.Low, High: row.High}
		if row.Prior == "fixed" {
			c = Fixed(row.Delta)
		}
		table[name] = Preset{name, row.Prior, c}
	}
	return table, nil
})

// LookupPreset returns the published setting with the given name, such as
// "alpaca/length_ratio". An unknown name is an [*ArgumentError] that lists the known names.
func LookupPreset(name string) (Preset, error) {
	table, err := presets()
	if err != nil {
		return Preset{}, err
	}
	p, ok := table[name]
	if !ok {
		return Preset{}, argErr("preset", -1, "must be one of %s, got %q", strings.Join(slices.Sorted(maps.Keys(table)), ", "), name)
	}
	return p, nil
}
