package pcrmtest

import (
	_ "embed"
	"encoding/json"
	"fmt"
)

// goldenJSON is the list of pairs of tests/golden/vectors.json, one per line. The tests check
// this and, with -update, write the file.
//
//go:embed golden.json
var goldenJSON []byte

// goldenPair is a pair with its loss and gradient, computed by mpmath with 60 digits.
type goldenPair struct {
	Margin         float64  `json:"margin"`
	Delta          *float64 `json:"delta"` // null is unconstrained
	LabelSmoothing float64  `json:"label_smoothing"`
	Loss           float64  `json:"loss"`
	Grad           float64  `json:"grad"`
}

// Golden fails t with the first golden vector that loss does not reproduce. The vectors cover
// margins from 1e-30 to 1e4 of both signs, finite deltas and +Inf. They exist for a
// [LabelSmoothing] of 0 and 0.1; any other value fails.
func Golden(t TB, loss Pair, options ...Option) {
	t.Helper()
	if err := golden(loss, options); err != nil {
		t.Fatalf("pcrmtest: golden: %v", err)
	}
}

func golden(loss Pair, options []Option) error {
	s, err := apply(options)
	if err != nil {
		return err
	}
	var vectors []goldenPair
	if err := json.Unmarshal(goldenJSON, &vectors); err != nil {
		return err
	}
	found := false
	for i, v := range vectors {
		if v.LabelSmoothing != s.smoothing {
			continue
		}
		found = true
		delta := inf
		if v.Delta != nil {
			delta = *v.Delta
		}
		got, grad := loss(v.Margin, delta)
		err := mismatch("loss", v.Margin, delta, got, v.Loss, s.lossError(v.Margin, delta, v.Loss))
		if err == nil {
			err = mismatch("gradient", v.Margin, delta, grad, v.Grad, s.grad)
		}
		if err != nil {
			return fmt.Errorf("vector %d: %w", i, err)
		}
	}
	if !found {
		return fmt.Errorf("LabelSmoothing must be 0 or 0.1 for golden vectors, got %v", s.smoothing)
	}
	return nil
}
