package pcrm_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

func TestParseConfig(t *testing.T) {
	curve := func(beta1, beta3 float64) pcrm.Constraint {
		return pcrm.Constraint{Beta1: beta1, Beta2: 0.001, Beta3: beta3}
	}
	defaults := pcrm.Config{Prior: "length_ratio", Targets: &pcrm.Targets{Alike: 1, Unlike: 3}, Form: "pair", DPOBeta: 0.1}
	with := func(prior string, c pcrm.Constraint) pcrm.Config {
		config := defaults
		config.Prior, config.Constraint, config.Targets = prior, c, nil
		return config
	}
	cosine := defaults
	cosine.Prior = "cosine"
	all := with("cosine", pcrm.Constraint{Beta1: 30, Beta2: 0.5, Beta3: 1, Floor: 2, Cap: math.Inf(1)})
	all.LabelSmoothing, all.CenterRewardsCoefficient, all.DPOBeta = 0.1, 0.01, 0.5
	token := defaults
	token.Form = "token"
	for document, want := range map[string]pcrm.Config{
		"":                                                                     defaults,
		"[constraint]\n[loss]\n[dpo]\n":                                        defaults,
		"constraint.prior = 'length_ratio'":                                    defaults,
		"[constraint]\nprior = 'cosine'":                                       cosine,
		"[constraint]\npreset = 'tldr/cosine'":                                 with("cosine", curve(30, -25)),
		"[constraint]\nbeta3 = -4":                                             with("length_ratio", curve(10, -4)),
		"\ufeff[constraint]\nbeta3 = -4":                                       with("length_ratio", curve(10, -4)),
		"[constraint]\r\nfloor = 1\r\ncap = 9\r\n":                             with("length_ratio", pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -5, Floor: 1, Cap: 9}),
		"[constraint]\nbeta1 = 0x10\nbeta3 = 0b1_1":                            with("length_ratio", curve(16, 3)),
		"constraint = {beta1 = 0o20, beta3 = 3}\n[dpo]\nbeta=0.1":              with("length_ratio", curve(16, 3)),
		"[constraint]\nprior = 'random'\nseed = 0x7fff_ffff_ffff_ffff":         with("random", pcrm.Random(4, 5, math.MaxInt64)),
		"[constraint]\nprior = 'lexical'\nbeta1 = 6\nbeta2 = 0.001\nbeta3 = 0": with("lexical", curve(6, 0)),
		"constraint = {prior = 'column', beta1 = 6, beta2 = 0.001, beta3 = 0}": with("column", curve(6, 0)),
		"[constraint]\nprior = 'fixed'":                                        with("fixed", pcrm.Fixed(4.5)),
		"[constraint]\nprior = 'fixed'\ndelta = inf":                           with("fixed", pcrm.Fixed(math.Inf(1))),
		"[constraint]\npreset = 'tldr/fixed'":                                  with("fixed", pcrm.Fixed(5)),
		"[constraint]\nprior = 'random'":                                       with("random", pcrm.Random(4, 5, 0)),
		"[constraint]\npreset = 'tldr/random'\nseed = 3":                       with("random", pcrm.Random(5, 6, 3)),
		"[constraint]\nprior = 'random'\nlow = 1\nhigh = 2.5":                  with("random", pcrm.Random(1, 2.5, 0)),
		"[loss]\nform = 'token'":                                               token,
		"[constraint]\nprior = 'cosine'\npreset = 'tldr/cosine'\nbeta2 = 0.5\nbeta3 = 1\nfloor = 2\ncap = +inf\n" +
			"[loss]\nlabel_smoothing = 0.1\ncenter_rewards_coefficient = 0.01\n[dpo]\nbeta = 0.5\n": all,
	} {
		got, err := pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte(document))
		require.NoError(t, err, document)
		assert.Equal(t, want, got, document)
	}
}

func TestParseConfigErrors(t *testing.T) {
	const constraintKeys = ": the keys of [constraint] are prior, preset, beta1, beta2, beta3, floor, cap, delta, low, high, seed, target_alike, target_unlike, win_alike, win_unlike"
	for document, message := range map[string]string{
		// Malformed TOML and unknown keys.
		"[constraint\n":                         "1: TOML is malformed: expected ']' to close table name",
		"\n[constraint]\nbeta1 = 1\nbeta1 = 2":  "4: beta1 cannot be read: key beta1 is already defined",
		"[constraint]\n# betas\nbeta4 = 1":      "3: constraint.beta4 is not a key" + constraintKeys,
		"[constraint]\nloss.form = 'pair'":      "2: constraint.loss.form is not a key" + constraintKeys,
		"\n[constrain]\nbeta1 = 1":              "2: constrain is not a key: the tables are constraint, loss, dpo",
		"beta1 = 1":                             "1: beta1 is not a key: the tables are constraint, loss, dpo",
		"[dpo]\nbta = 1\n[loss]\nfrom = 'pair'": "2: dpo.bta is not a key: the keys of [dpo] are beta\npcrm.toml:4: loss.from is not a key: the keys of [loss] are form, label_smoothing, center_rewards_coefficient",
		// Types.
		"[constraint]\nbeta1 = 'x'":                                    "2: constraint.beta1 must be a number, got a TOML string",
		"[constraint]\nprior = 3":                                      "2: constraint.prior must be a string, got a TOML integer",
		"[constraint]\nseed = 1.5":                                     "2: constraint.seed must be an integer of at least 0, got a TOML float",
		"[constraint]\nprior = 'random'\nseed = -1":                    "3: constraint.seed cannot be read: negative integer value -1 cannot be stored in uint64",
		"\nconstraint = 3":                                             "2: constraint must be a table, got a TOML integer",
		"[constraint]\nprior = 'random'\nseed = 0x8000_0000_0000_0000": "3: constraint.seed cannot be read: decimal number is too large to fit in a 64-bit signed integer",
		// Values.
		"[constraint]\nbeta3 = 0x10\ncap = 1e400":             "3: constraint.cap must be a number of at most 1.7976931348623157e+308",
		"[constraint]\nbeta1 = nan":                           "2: constraint.beta1 must be a number, got NaN",
		"[constraint]\nbeta2 = -1.0":                          "2: constraint.beta2 must be at least 0, got -1",
		"[constraint]\nfloor = 5\ncap = 4":                    "2: constraint.floor must be at most cap, which is 4, got 5",
		"[constraint]\ncap = 0":                               "2: constraint.cap must be greater than 0, got 0",
		"[constraint]\nprior = 'length_ratio'\n\nbeta3 = -20": "4: constraint.delta must be greater than 0 on all of [0, 1], got -10.009990009990009 at similarity 1: a ceiling of 0 or less would reward ties and reversals",
		"constraint = {beta1 = 4}":                            "1: constraint.delta must be greater than 0 on all of [0, 1], got -1.0039960039960034 at similarity 1: a ceiling of 0 or less would reward ties and reversals",
		"[constraint]\nprior = 'fixed'\ndelta = -1":           "3: constraint.delta must be greater than 0, got -1",
		"[constraint]\nprior = 'fixed'\ndelta = nan":          "3: constraint.delta must be greater than 0, got NaN",
		"[constraint]\nprior = 'random'\nlow = 6":             "3: constraint.high must be finite and at least low, which is 6, got 5",
		"[constraint]\nprior = 'random'\nlow = 0\nhigh = 0":   "3: constraint.low must be finite and greater than 0, got 0: a ceiling of 0 or less would reward ties and reversals",
		"[constraint]\nprior = 'length'":                      `2: constraint.prior must be one of length_ratio, cosine, lexical, column, fixed, random, got "length"`,
		"[Constraint]\nPrior = 'length'":                      "1: Constraint is not a key: the tables are constraint, loss, dpo",
		"[constraint]\npreset = 'alpaca'":                     `2: constraint.preset must be one of alpaca/cosine, alpaca/fixed, alpaca/length_ratio, alpaca/random, dpo/cosine, dpo/length_ratio, tldr/cosine, tldr/fixed, tldr/length_ratio, tldr/random, got "alpaca"`,
		"[loss]\nform = 'tokens'":                             `2: loss.form must be pair or token, got "tokens"`,
		"\n[loss]\nlabel_smoothing = 0.5":                     "3: loss.label_smoothing must be in [0, 0.5), got 0.5",
		"[loss]\ncenter_rewards_coefficient = inf":            "2: loss.center_rewards_coefficient must be at least 0 and finite, got +Inf",
		"[dpo]\nbeta = 0":                                     "2: dpo.beta must be finite and greater than 0, got 0",
		"[dpo]\n\nbeta = inf":                                 "3: dpo.beta must be finite and greater than 0, got +Inf",
		// Contradictions.
		"[constraint]\nprior = 'cosine'\npreset = 'tldr/fixed'": `3: constraint.preset must be for the prior "cosine", got "tldr/fixed", which is for "fixed"`,
		"[constraint]\nprior = 'fixed'\nbeta1 = 3":              `3: constraint.beta1 must not be set, got 3: the prior "fixed" does not use it`,
		"[constraint]\nprior = 'random'\nfloor = 3":             `3: constraint.floor must not be set, got 3: the prior "random" does not use it`,
		"[constraint]\ndelta = 3":                               `2: constraint.delta must not be set, got 3: the prior "length_ratio" does not use it`,
		"[constraint]\nprior = 'fixed'\nhigh = 3":               `3: constraint.high must not be set, got 3: the prior "fixed" does not use it`,
		"[constraint]\nseed = 3":                                `2: constraint.seed must not be set, got 3: the prior "length_ratio" does not use it`,
		"[constraint]\nprior = 'lexical'\nbeta1 = 3":            `3: constraint.beta3 is missing: the prior "lexical" has no published setting for reward models. Set beta1 and beta3`,
		"[loss]\nform = 'token'\nlabel_smoothing = 0.1":         `3: loss.label_smoothing must be 0 with form = "token", which does not use it, got 0.1`,
		"[loss]\nform = 'token'\ncenter_rewards_coefficient=1":  `3: loss.center_rewards_coefficient must be 0 with form = "token", which does not use it, got 1`,
	} {
		got, err := pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte(document))
		assert.EqualError(t, err, "pcrm.toml:"+message, document)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument, document)
		assert.Zero(t, got, document)
	}
}

func TestErrorsBehindAByteOrderMarkNameTheLine(t *testing.T) {
	for _, document := range []string{"\ufeff[constraint]\nbeta2 = -1", "\ufeff[constraint]\nbeta4 = 1"} {
		_, err := pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte(document))
		assert.ErrorContains(t, err, "pcrm.toml:2: constraint.beta", document)
	}
}

func TestLoadConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pcrm.toml")
	_, err := pcrm.LoadConfig(path)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	assert.ErrorContains(t, err, path)
	require.NoError(t, os.WriteFile(path, []byte("[constraint]\npreset = 'tldr/cosine'\n"), 0o600))
	config, err := pcrm.LoadConfig(path)
	require.NoError(t, err)
	assert.Equal(t, "cosine", config.Prior)
	require.NoError(t, os.WriteFile(path, []byte("[dpo]\nbeta = -1\n"), 0o600))
	_, err = pcrm.LoadConfig(path)
	assert.EqualError(t, err, path+":2: dpo.beta must be finite and greater than 0, got -1")
}

// Opening a pipe without a writer, or with a silent one, does not block.
func TestLoadConfigOfNoFile(t *testing.T) {
	folder := t.TempDir()
	pipe := filepath.Join(folder, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	paths := []string{pipe, folder, "/dev/zero"}
	for range 2 {
		for _, path := range paths {
			_, err := pcrm.LoadConfig(path)
			assert.EqualError(t, err, "open "+path+": must be a regular file")
			var refused *os.PathError
			assert.ErrorAs(t, err, &refused)
		}
		writer, err := os.OpenFile(pipe, os.O_RDWR, 0)
		require.NoError(t, err)
		defer writer.Close()
	}
}

// A document that is too long is rejected before go-toml parses it, and only the allowed size is
// read.
func TestLargeConfig(t *testing.T) {
	const most = 16 << 10
	line := "# a comment\n"
	document := strings.Repeat(line, most/len(line)) + strings.Repeat("#", most%len(line))
	_, err := pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte(document))
	require.NoError(t, err)
	_, err = pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte(document+"\n"))
	assert.EqualError(t, err, fmt.Sprintf("pcrm.toml:%d: TOML must be at most 16384 bytes long", 1+most/len(line)))
	var argument *pcrm.ArgumentError
	assert.ErrorAs(t, err, &argument)
	path := filepath.Join(t.TempDir(), "pcrm.toml")
	require.NoError(t, os.WriteFile(path, []byte(strings.Repeat(document, 9)), 0o600))
	_, err = pcrm.LoadConfig(path)
	assert.EqualError(t, err, fmt.Sprintf("%s:%d: TOML must be at most 16384 bytes long", path, 1+most/len(line)))
	var unknown strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&unknown, "k%d = 1\n", i)
	}
	_, err = pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte(unknown.String()))
	assert.Equal(t, 19, strings.Count(err.Error(), "\n"), "twenty errors of a thousand")
	for _, nested := range []string{"a = " + strings.Repeat("[", 16000), "a = " + strings.Repeat("{a=", 5000), strings.Repeat("a.", 8000) + "a = 1"} {
		_, err = pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte(nested))
		assert.ErrorContains(t, err, "pcrm.toml:1: ")
	}
}

// The result is a valid configuration or an error with a line, but never a panic or an invalid
// constraint.
func FuzzParseConfig(f *testing.F) {
	for _, document := range []string{
		"",
		"[constraint]\nprior = \"lexical\"\nbeta1 = 10\nbeta2 = 0.001\nbeta3 = -5.0\nfloor = 2\ncap = inf\n",
		"[constraint]\nprior = 'random'\nlow = 4\nhigh = 5\nseed = 7\n[loss]\nform = 'token'\n",
		"constraint = {prior = 'fixed', delta = inf}\ndpo.beta = 1e-3",
		"[loss]\nlabel_smoothing = 0.1\ncenter_rewards_coefficient = 0.01\n",
		"[constraint]\n'beta1' = nan", "[constraint.beta1]\nx = 1", "[[constraint]]", "\ufeff[loss]", "a.b.c = [1, {d = 2}]",
		"['con\u017ftraint']\n'\u017feed' = 1\nprior = 'random'\nlow = -1",
	} {
		f.Add([]byte(document))
	}
	f.Fuzz(func(t *testing.T, document []byte) {
		config, err := pcrm.ParseConfig(pcrm.RewardTask, "x.toml", document)
		if err != nil {
			require.Regexp(t, `^x\.toml:[1-9]`, err.Error())
			var argument *pcrm.ArgumentError
			require.True(t, errors.As(err, &argument), "%v", err)
			return
		}
		if config.Targets != nil {
			require.NoError(t, config.Targets.Validate())
		} else {
			require.NoError(t, config.Constraint.Validate())
		}
		require.Equal(t, config.Prior == "random", config.Constraint.IsRandom())
		require.Contains(t, pcrm.Priors, config.Prior)
	})
}
