package pcrm

import "math"

// Targets are the target margins of alike (similar) and unlike (dissimilar) pairs. [Fit]
// turns them into a constraint, given the similarities of the training data.
type Targets struct{ Alike, Unlike float64 }

// The defaults correspond to win probabilities of .73 and .95, about the range of annotator agreement.
const defaultAlike, defaultUnlike = 1.0, 3.0

// Validate returns an [*ArgumentError] unless 0 < Alike < Unlike < +Inf.
func (t Targets) Validate() error {
	switch {
	case !(t.Alike > 0):
		return argErr("target_alike", -1, "must be greater than 0, got %v: "+
			"a ceiling of 0 or less would reward ties and reversals", t.Alike)
	case !(t.Unlike > t.Alike) || math.IsInf(t.Unlike, 1):
		return argErr("target_unlike", -1, "must be finite and greater than target_alike, which is %v, got %v", t.Alike, t.Unlike)
	}
	return nil
}

// side holds the setting for similar or for dissimilar pairs: a margin or a win probability.
type side struct {
	name        string
	target, win *float64
}

func (s Settings) sides() [2]side {
	return [2]side{{"alike", s.TargetAlike, s.WinAlike}, {"unlike", s.TargetUnlike, s.WinUnlike}}
}

// givenTarget returns the name of a target that is set, or "".
func (s Settings) givenTarget() string {
	for _, side := range s.sides() {
		if side.target != nil {
			return "target_" + side.name
		}
	}
	for _, side := range s.sides() {
		if side.win != nil {
			return "win_" + side.name
		}
	}
	return ""
}

// Targets returns the prior, and the targets that the settings specify instead of a curve, by
// rules 3 and 6 of [Settings.Resolve]. t is nil if the settings specify a constraint.
//
// Errors, each an [*ArgumentError]: an unknown prior or preset; targets for a prior without a
// curve; settings that break a rule.
func (s Settings) Targets() (prior string, t *Targets, err error) {
	if prior, err = s.prior(); err != nil {
		return "", nil, err
	}
	asked := s.givenTarget()
	if asked == "" {
		named := Settings{Prior: s.Prior}
		if s == named && isCurve(prior) {
			return prior, &Targets{defaultAlike, defaultUnlike}, nil
		}
		return "", nil, nil
	}
	if !isCurve(prior) {
		return "", nil, argErr(asked, -1, "must not be set: the prior %q does not use it", prior)
	}
	if s.Preset != nil {
		return "", nil, argErr("preset", -1, "must not be set with %s, got %q: the curve is fitted to the data", asked, *s.Preset)
	}
	for _, value := range []struct {
		name  string
		value *float64
	}{
		{"beta1", s.Beta1},
		{"beta2", s.Beta2},
		{"beta3", s.Beta3},
		{"floor", s.Floor},
		{"cap", s.Cap},
		{"delta", s.Delta},
		{"low", s.Low},
		{"high", s.High},
	} {
		if value.value != nil {
			return "", nil, argErr(value.name, -1, "must not be set with %s, got %v: the curve is fitted to the data", asked, *value.value)
		}
	}
	if s.Seed != nil {
		return "", nil, argErr("seed", -1, "must not be set, got %d: the prior %q does not use it", *s.Seed, prior)
	}
	var margins [2]float64
	for i, side := range s.sides() {
		switch {
		case side.target != nil && side.win != nil:
			return "", nil, argErr("win_"+side.name, -1, "must not be set with target_%s, got %v and %v: set one of them", side.name, *side.win, *side.target)
		case side.target != nil:
			margins[i] = *side.target
		case side.win == nil:
			return "", nil, argErr("target_"+side.name, -1, "is missing: %s is set, so also set target_%s or win_%s", asked, side.name, side.name)
		case !(*side.win > 0.5 && *side.win < 1):
			return "", nil, argErr("win_"+side.name, -1, "must be in (0.5, 1), got %v", *side.win)
		default:
			margins[i] = math.Log(*side.win / (1 - *side.win))
		}
	}
	t = &Targets{margins[0], margins[1]}
	if s.WinUnlike != nil && t.Alike > 0 && t.Unlike <= t.Alike {
		return "", nil, argErr("win_unlike", -1, "must be a margin greater than that of similar pairs (%v), got %v, a margin of %v",
			t.Alike, *s.WinUnlike, t.Unlike)
	}
	if err := t.Validate(); err != nil {
		return "", nil, err
	}
	return prior, t, nil
}
