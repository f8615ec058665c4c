package pcrm_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/pcrm-project/pcrm/pcrm"
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
	// delta is -10.009990009990009 at similarity 1, must be greater than 0 on all of [0, 1]: a ceiling of zero or less rewards ties and reversals
}

func ExampleDeltas() {
	delta := make([]float32, 3)
	err := pcrm.Deltas(delta, []float32{0, 0.5, 1}, pcrm.Constraint{Beta1: 1.1, Beta2: 0.001, Beta3: 0.9, Cap: 12})
	fmt.Println(delta, err)
	// Output: [12 3.0956087 1.9989011] <nil>
}

func ExampleRandom() {
	c := pcrm.Random(4, 5, 42)
	u := pcrm.RandomUniform(c.Seed, []int64{1, 2, 3}, []int64{1, 9}, pcrm.NoPad)
	padded := pcrm.RandomUniform(c.Seed, []int64{1, 2, 3, 0, 0}, []int64{1, 9, 0}, 0)
	fmt.Printf("%.6f %v\n", c.Delta(u), u == padded)
	// Output: 4.661318 true
}

func ExampleLengthRatio() {
	chosen := []int64{7, 8, 1, 2, 3} // 7 8 is the prompt
	rejected := []int64{7, 8, 9, 0, 0}
	fmt.Printf("%.4f\n", pcrm.LengthRatio(chosen, rejected, 0))
	// Output: 0.3333
}

func ExampleLengthRatios() {
	// Two pairs as an Arrow list column has them.
	chosen, rejected := []int32{1, 2, 3, 7, 8}, []int32{1, 9, 7, 8}
	s := make([]float32, 2)
	err := pcrm.LengthRatios(s, chosen, []int32{0, 3, 5}, rejected, []int32{0, 2, 4}, pcrm.NoPad)
	fmt.Println(s, err)
	// Output: [0.5 1] <nil>
}

func ExampleCosine() {
	c, err := pcrm.Cosine([]float32{1, 0}, []float32{1, 1})
	fmt.Printf("%.4f %v\n", c, err)
	_, err = pcrm.Cosine([]float32{1, 0}, []float32{0, 0})
	fmt.Println(err)
	// Output:
	// 0.7071 <nil>
	// b is a zero vector, which has no direction
}

func ExampleCosines() {
	s := make([]float64, 2)
	err := pcrm.Cosines(s, []float32{1, 0, 0, 1}, []float32{1, 1, 0, -1}, 2, true)
	fmt.Printf("%.2f %v\n", s, err)
	// Output: [0.75 0.50] <nil>
}

func ExampleLexical() {
	s, err := pcrm.Lexical("Should I ask him to leave?", "Should I ask her to stay?", pcrm.LexicalOptions{})
	fmt.Printf("%.4f %v\n", s, err)
	s, err = pcrm.Lexical("Should I ask him to leave?", "Should I ask her to stay?", pcrm.LexicalOptions{Words: true})
	fmt.Printf("%.4f %v\n", s, err)
	// Output:
	// 0.5307 <nil>
	// 0.5455 <nil>
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
	// Output: pcrm.toml:3: constraint.beta1 is 10, which the prior "fixed" does not use
}
