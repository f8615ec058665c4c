package stats

import (
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// checkFinite returns an error for the first element that is NaN or infinite.
func checkFinite(name string, x []float64) error {
	for i, v := range x {
		if v-v != 0 {
			return argument.Errorf(name, i, "must be finite, got %v", v)
		}
	}
	return nil
}

// checkPaired is checkFinite for two slices, which must have the same length.
func checkPaired(xName string, x []float64, yName string, y []float64) error {
	if len(x) != len(y) {
		return argument.Errorf(yName, -1, "must have %d elements, like %s, got %d", len(x), xName, len(y))
	}
	if len(x) > math.MaxInt32 { // ranks are stored in 32 bits
		return argument.Errorf(xName, -1, "must have at most %d elements, got %d", math.MaxInt32, len(x))
	}
	if err := checkFinite(xName, x); err != nil {
		return err
	}
	return checkFinite(yName, y)
}
