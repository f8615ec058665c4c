package pcrm_test

import (
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/prior"
)

func ExampleConstraint() {
	c := pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -5}
	for _, s := range []float64{1, 0.7, 0.5} {
		fmt.Printf("similarity %.1f: margin below %.2f, best at %.2f\n", s, c.Delta(s), c.Target(s))
	}
	fmt.Println(pcrm.Constraint{Beta1: 10, Beta2: 0.001, Beta3: -20}.Validate())
	// Output:
	// similarity 1.0: margin below 4.99, best at 2.50
	// similarity 0.7: margin below 9.27, best at 4.63
	// similarity 0.5: margin below 14.96, best at 7.48
	// delta must be greater than 0 on all of [0, 1], got -10.009990009990009 at similarity 1: a ceiling of 0 or less would reward ties and reversals
}

// The same margin means a higher probability if its target is closer.
func ExampleWinProbability() {
	for _, delta := range []float64{3, 4, 8, math.Inf(1)} {
		fmt.Printf("%.3f ", pcrm.WinProbability(1, delta))
	}
	// Output: 0.826 0.766 0.732 0.731
}

func ExampleDeltas() {
	delta := make([]float32, 3)
	err := pcrm.Deltas(delta, []float32{0, 0.5, 1}, pcrm.Constraint{Beta1: 1.1, Beta2: 0.001, Beta3: 0.9, Cap: 12})
	fmt.Println(delta, err)
	// Output: [12 3.0956087 1.9989011] <nil>
}

func ExampleRandom() {
	c := pcrm.Random(4, 5, 42)
	u := prior.RandomUniform(c.Seed, []int64{1, 2, 3}, []int64{1, 9}, prior.NoPad)
	padded := prior.RandomUniform(c.Seed, []int64{1, 2, 3, 0, 0}, []int64{1, 9, 0}, 0)
	fmt.Printf("%.6f %v\n", c.Delta(u), u == padded)
	// Output: 4.661318 true
}

func ExampleLoadConfig() {
	path := filepath.Join(os.TempDir(), "pcrm-example.toml")
	defer os.Remove(path)
	_ = os.WriteFile(path, []byte("[constraint]\npreset = \"tldr/cosine\"\ncap = 40.0\n"), 0o600)
	config, err := pcrm.LoadConfig(path)
	fmt.Println(config.Prior, config.Constraint.Beta1, config.Constraint.Cap, config.Form, config.DPOBeta, err)
	// Output: cosine 30 40 pair 0.1 <nil>
}

func ExampleParseConfig() {
	_, err := pcrm.ParseConfig(pcrm.RewardTask, "pcrm.toml", []byte("[constraint]\nprior = \"fixed\"\nbeta1 = 10\n"))
	fmt.Println(err)
	// Output: pcrm.toml:3: constraint.beta1 must not be set, got 10: the prior "fixed" does not use it
}
