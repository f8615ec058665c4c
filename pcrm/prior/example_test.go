package prior_test

import (
	"fmt"

	"github.com/pcrm-project/pcrm/pcrm/prior"
)

func ExampleLengthRatio() {
	chosen := []int64{7, 8, 1, 2, 3} // 7 8 is the prompt
	rejected := []int64{7, 8, 9, 0, 0}
	fmt.Printf("%.4f\n", prior.LengthRatio(chosen, rejected, 0))
	// Output: 0.3333
}

func ExampleLengthRatios() {
	// Two pairs in the layout of an Arrow list column.
	chosen, rejected := []int32{1, 2, 3, 7, 8}, []int32{1, 9, 7, 8}
	s := make([]float32, 2)
	err := prior.LengthRatios(s, chosen, []int32{0, 3, 5}, rejected, []int32{0, 2, 4}, prior.NoPad)
	fmt.Println(s, err)
	// Output: [0.5 1] <nil>
}

func ExampleCosine() {
	c, err := prior.Cosine([]float32{1, 0}, []float32{1, 1})
	fmt.Printf("%.4f %v\n", c, err)
	_, err = prior.Cosine([]float32{1, 0}, []float32{0, 0})
	fmt.Println(err)
	// Output:
	// 0.7071 <nil>
	// b must have a nonzero element, got a zero vector
}

func ExampleCosines() {
	s := make([]float64, 2)
	err := prior.Cosines(s, []float32{1, 0, 0, 1}, []float32{1, 1, 0, -1}, 2, true)
	fmt.Printf("%.2f %v\n", s, err)
	// Output: [0.75 0.50] <nil>
}

func ExampleLexical() {
	s, err := prior.Lexical("Should I ask him to leave?", "Should I ask her to stay?", prior.LexicalOptions{})
	fmt.Printf("%.4f %v\n", s, err)
	s, err = prior.Lexical("Should I ask him to leave?", "Should I ask her to stay?", prior.LexicalOptions{Words: true})
	fmt.Printf("%.4f %v\n", s, err)
	// Output:
	// 0.5307 <nil>
	// 0.5455 <nil>
}

func ExampleRandomUniform() {
	u := prior.RandomUniform(42, []int64{1, 2, 3}, []int64{1, 9}, prior.NoPad)
	padded := prior.RandomUniform(42, []int64{1, 2, 3, 0, 0}, []int64{1, 9, 0}, 0)
	fmt.Printf("%.6f %v\n", u, u == padded)
	// Output: 0.661318 true
}
