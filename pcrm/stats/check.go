package stats

import (
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// checkFinite names the first element that is NaN or infinite.
func checkFinite(name string, x []float64) error {
	for i, v := range x {
		if v-v != 0 {
			return argument.Errorf(name, i, "is %v, must be finite", v)
		}
	}
	return nil
}

// checkPaired is checkFinite for two slices of one length.
func checkPaired(xName string, x []float64, yName string, y []float64) error {
	if len(x) != len(y) {
		return argument.Errorf(yName, -1, "has %d elements, %s has %d", len(y), xName, len(x))
	}
	if len(x) > math.MaxInt32 { // ranks are counted in 32 bits
		return argument.Errorf(xName, -1, "has %d elements, must be at most %d", len(x), math.MaxInt32)
	}
	if err := checkFinite(xName, x); err != nil {
		return err
	}
	return checkFinite(yName, y)
}
