package pcrm_test

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

// settingsCase is one row of testdata/settings.json. tests/settings/test_settings.py reads the file too.
// All interfaces that take settings must give these constraints and errors.
type settingsCase struct {
	Name       string
	Task       string
	Given      map[string]any
	Prior      string
	Constraint map[string]any
	Targets    map[string]float64 // instead of Constraint
	Error      []string           // parts of the message, beginning with the name of the setting
}

func settingsCases(t *testing.T) []settingsCase {
	t.Helper()
	data, err := os.ReadFile("testdata/settings.json")
	require.NoError(t, err)
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.DisallowUnknownFields()
	decoder.UseNumber()
	var cases []settingsCase
	require.NoError(t, decoder.Decode(&cases))
	require.NotEmpty(t, cases)
	return cases
}

func (c settingsCase) task() pcrm.Task {
	if c.Task == "dpo" {
		return pcrm.DPOTask
	}
	return pcrm.RewardTask
}

// toml writes the settings as a file. JSON has inf and nan as strings.
func (c settingsCase) toml() string {
	text := "[constraint]\n"
	for key, value := range c.Given {
		if s, ok := value.(string); ok && s != "inf" && s != "nan" {
			value = strconv.Quote(s)
		}
		text += fmt.Sprintf("%s = %v\n", key, value)
	}
	return text
}

func (c settingsCase) want(t *testing.T) pcrm.Constraint {
	t.Helper()
	numbers := map[string]float64{}
	for key, value := range c.Constraint {
		number, err := strconv.ParseFloat(fmt.Sprint(value), 64)
		require.NoError(t, err)
		numbers[key] = number
	}
	if delta, ok := numbers["delta"]; ok {
		return pcrm.Fixed(delta)
	}
	return pcrm.Constraint{
		Beta1: numbers["beta1"], Beta2: numbers["beta2"], Beta3: numbers["beta3"], Floor: numbers["floor"], Cap: numbers["cap"],
		Low: numbers["low"], High: numbers["high"], Seed: uint64(numbers["seed"]),
	}
}

func (c settingsCase) assertTargets(t *testing.T, got *pcrm.Targets) {
	t.Helper()
	require.NotNil(t, got, c.Name)
	assert.InEpsilon(t, c.Targets["alike"], got.Alike, 1e-15, c.Name)
	assert.InEpsilon(t, c.Targets["unlike"], got.Unlike, 1e-15, c.Name)
}

func TestSettingsInTOML(t *testing.T) {
	for _, c := range settingsCases(t) {
		t.Run(c.Name, func(t *testing.T) {
			config, err := pcrm.ParseConfig(c.task(), "pcrm.toml", []byte(c.toml()))
			if len(c.Error) > 0 {
				require.Error(t, err)
				assert.Zero(t, config)
				for _, word := range c.Error {
					assert.ErrorContains(t, err, word)
				}
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.Prior, config.Prior)
			if c.Targets != nil {
				c.assertTargets(t, config.Targets)
				return
			}
			assert.Nil(t, config.Targets)
			assert.Equal(t, c.want(t), config.Constraint)
		})
	}
}

func TestSettingsInGo(t *testing.T) {
	checked := 0
	for _, c := range settingsCases(t) {
		var s pcrm.Settings
		texts := map[string]**string{"prior": &s.Prior, "preset": &s.Preset}
		numbers := map[string]**float64{
			"beta1": &s.Beta1, "beta2": &s.Beta2, "beta3": &s.Beta3, "floor": &s.Floor, "cap": &s.Cap,
			"delta": &s.Delta, "low": &s.Low, "high": &s.High,
			"target_alike": &s.TargetAlike, "target_unlike": &s.TargetUnlike, "win_alike": &s.WinAlike, "win_unlike": &s.WinUnlike,
		}
		typed := true // Go's types rule out the other rows at compile time
		for key, value := range c.Given {
			text := fmt.Sprint(value)
			if to, ok := texts[key]; ok {
				_, isText := value.(string)
				typed = typed && isText
				*to = &text
			} else if to, ok := numbers[key]; ok {
				number, err := strconv.ParseFloat(text, 64)
				typed = typed && err == nil
				*to = &number
			} else {
				seed, err := strconv.ParseUint(text, 10, 64)
				typed = typed && err == nil
				s.Seed = &seed
			}
		}
		if !typed {
			continue
		}
		checked++
		prior, targets, err := s.Targets()
		var constraint pcrm.Constraint
		if err == nil && targets == nil {
			prior, constraint, err = s.Resolve(c.task())
		}
		if len(c.Error) > 0 {
			var argument *pcrm.ArgumentError
			require.ErrorAs(t, err, &argument, c.Name)
			assert.Equal(t, c.Error[0], argument.Argument, c.Name)
			continue
		}
		require.NoError(t, err, c.Name)
		assert.Equal(t, c.Prior, prior, c.Name)
		if c.Targets != nil {
			c.assertTargets(t, targets)
			_, _, err := s.Resolve(c.task())
			assert.ErrorContains(t, err, "must be fitted to data", c.Name)
			continue
		}
		assert.Equal(t, c.want(t), constraint, c.Name)
	}
	assert.Greater(t, checked, 55)
}

// A Constraint written directly obeys the same bounds.
func TestSettingsAndConstraintsAgree(t *testing.T) {
	for _, c := range settingsCases(t) {
		if len(c.Error) == 0 && c.Targets == nil {
			assert.NoError(t, c.want(t).Validate(), c.Name)
		}
	}
	assert.Error(t, pcrm.Fixed(math.NaN()).Validate())
}

func TestKeysAreInLowerCase(t *testing.T) {
	for _, document := range []string{"[Constraint]\nbeta1 = 3", "[constraint]\nBeta1 = 3", "constraint = {SEED = 3}"} {
		_, err := pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte(document))
		assert.ErrorContains(t, err, "is not a key", document)
	}
}
