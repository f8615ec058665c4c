package pcrm

import (
	"slices"
	"strings"
)

// Priors are the names of the priors. "column" means the user's own numbers; "fixed" and
// "random" need no similarity.
var Priors = []string{"length_ratio", "cosine", "lexical", "column", "fixed", "random"}

// Task is the kind of model to train. It selects the published setting that fills in missing values.
type Task int

const (
	RewardTask Task = iota // reward models; presets alpaca/...
	DPOTask                // DPO policies; presets dpo/...
)

// published is the first part of the names of the task's default presets.
func (t Task) published() string {
	if t == DPOTask {
		return "dpo"
	}
	return "alpaca"
}

func (t Task) String() string {
	if t == DPOTask {
		return "DPO"
	}
	return "reward models"
}

// Settings describe a constraint as a user writes it, in a file or in Go. nil means that
// a value was not given.
type Settings struct {
	Prior  *string  `toml:"prior"`
	Preset *string  `toml:"preset"`
	Beta1  *float64 `toml:"beta1"`
	Beta2  *float64 `toml:"beta2"`
	Beta3  *float64 `toml:"beta3"`
	Floor  *float64 `toml:"floor"`
	Cap    *float64 `toml:"cap"`
	Delta  *float64 `toml:"delta"`
	Low    *float64 `toml:"low"`
	High   *float64 `toml:"high"`
	Seed   *uint64  `toml:"seed"`

	// Instead of a curve; see Settings.Targets.
	TargetAlike  *float64 `toml:"target_alike"`
	TargetUnlike *float64 `toml:"target_unlike"`
	WinAlike     *float64 `toml:"win_alike"`
	WinUnlike    *float64 `toml:"win_unlike"`
}

// defaultBeta2 keeps the curve finite at s = 0. All published settings use this value.
const defaultBeta2 = 0.001

// Resolve returns the prior and the constraint that the settings describe. The same rules
// apply to a pcrm.toml, to the trainers in Python and to all command lines. Python's
// pcrm.settings.resolve implements them too; testdata/settings.json tests both with the same
// cases.
//
//  1. The prior is the given one, else the preset's, else "length_ratio".
//  2. A preset must be for that prior. Only "column" may borrow a curve from another prior,
//     because the caller knows what the column contains.
//  3. A given value is used. A missing value comes from the preset. Without a preset, it comes
//     from the published setting for the task and the prior ("alpaca/<prior>" for reward
//     models, "dpo/<prior>" for DPO). Without a preset and without any value of a curve, the
//     default is targets: 1 for similar and 3 for dissimilar pairs.
//  4. A value without a published setting must be given: beta1 and beta3 for a curve of
//     "lexical" or "column", delta for "fixed", low and high for "random". The defaults of
//     the others are 0.001 for beta2, no floor, no cap, and 0 for seed.
//  5. A value that the prior does not use is an error.
//  6. Targets are given as a margin or a win probability for similar pairs and one for
//     dissimilar pairs. They specify a curve that is fitted to the training data. Both sides must be
//     given, without a preset or a value of a curve. Resolve returns an error for targets;
//     [Settings.Targets] reads them.
//
// Errors, each an [*ArgumentError]: an unknown prior or preset; settings that break a rule;
// the errors of [Constraint.Validate].
func (s Settings) Resolve(task Task) (prior string, c Constraint, err error) {
	if _, targets, err := s.Targets(); err != nil {
		return "", c, err
	} else if targets != nil {
		return "", c, argErr("targets", -1, "must be fitted to data, got %v and %v: call Settings.Targets and Fit, or set a preset",
			targets.Alike, targets.Unlike)
	}
	if prior, err = s.prior(); err != nil {
		return "", c, err
	}
	var preset *Preset
	if s.Preset != nil {
		p, err := LookupPreset(*s.Preset)
		if err != nil {
			return "", c, err
		}
		preset = &p
	}
	if preset == nil {
		if p, err := LookupPreset(task.published() + "/" + prior); err == nil {
			preset = &p
		}
	}
	needed := preset == nil
	switch {
	case preset != nil:
		c = preset.Constraint
	case prior == "fixed":
		c = Fixed(0)
	case isCurve(prior):
		c.Beta2 = defaultBeta2
	}
	for _, key := range []struct {
		name   string
		value  *float64
		to     *float64
		usable bool
		needed bool
	}{
		{"beta1", s.Beta1, &c.Beta1, isCurve(prior), needed},
		{"beta2", s.Beta2, &c.Beta2, isCurve(prior), false},
		{"beta3", s.Beta3, &c.Beta3, isCurve(prior), needed},
		{"floor", s.Floor, &c.Floor, isCurve(prior), false},
		{"cap", s.Cap, &c.Cap, isCurve(prior), false},
		{"delta", s.Delta, &c.Beta3, prior == "fixed", needed}, // see Fixed
		{"low", s.Low, &c.Low, prior == "random", needed},
		{"high", s.High, &c.High, prior == "random", needed},
	} {
		switch {
		case key.value != nil && !key.usable:
			return "", Constraint{}, argErr(key.name, -1, "must not be set, got %v: the prior %q does not use it", *key.value, prior)
		case key.value != nil:
			*key.to = *key.value
		case key.needed && key.usable:
			return "", Constraint{}, argErr(key.name, -1, "is missing: the prior %q has no published setting for %s. Set %s",
				prior, task, neededBy[prior])
		}
	}
	if s.Seed != nil {
		if prior != "random" {
			return "", Constraint{}, argErr("seed", -1, "must not be set, got %d: the prior %q does not use it", *s.Seed, prior)
		}
		c.Seed = *s.Seed
	}
	switch {
	case s.Floor != nil && *s.Floor == 0: // in a Constraint, 0 means none
		err = argErr("floor", -1, "must be greater than 0, got 0")
	case s.Cap != nil && *s.Cap == 0:
		err = argErr("cap", -1, "must be greater than 0, got 0")
	case prior == "fixed" && !(c.Beta3 > 0):
		err = argErr("delta", -1, "must be greater than 0, got %v", c.Beta3)
	case prior == "random":
		err = c.validateRandom()
	default:
		err = c.Validate()
	}
	if err != nil {
		return "", Constraint{}, err
	}
	return prior, c, nil
}

// prior returns the prior by rules 1 and 2 of [Settings.Resolve].
func (s Settings) prior() (string, error) {
	var preset *Preset
	prior := "length_ratio"
	if s.Preset != nil {
		p, err := LookupPreset(*s.Preset)
		if err != nil {
			return "", err
		}
		preset, prior = &p, p.Prior
	}
	if s.Prior != nil {
		if !slices.Contains(Priors, *s.Prior) {
			return "", argErr("prior", -1, "must be one of %s, got %q", strings.Join(Priors, ", "), *s.Prior)
		}
		prior = *s.Prior
	}
	if preset != nil && prior != preset.Prior && (prior != "column" || !isCurve(preset.Prior)) {
		return "", argErr("preset", -1, "must be for the prior %q, got %q, which is for %q", prior, *s.Preset, preset.Prior)
	}
	return prior, nil
}

// isCurve reports whether the prior's constraint is beta1/(s+beta2) + beta3.
func isCurve(prior string) bool { return prior != "fixed" && prior != "random" }

// neededBy lists the values that a prior needs for a constraint.
var neededBy = map[string]string{
	"length_ratio": "beta1 and beta3", "cosine": "beta1 and beta3", "lexical": "beta1 and beta3", "column": "beta1 and beta3",
	"fixed": "delta", "random": "low and high",
}
