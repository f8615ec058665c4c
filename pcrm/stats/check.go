package stats

import (
	"fmt"
	"math"

	"github.com/pcrm-project/pcrm/pcrm"
)

func argErr(argument string, index int, format string, args ...any) error {
	return &pcrm.ArgumentError{Argument: argument, Index: index, Reason: fmt.Sprintf(format, args...)}
}

// checkFinite names the first element that is NaN or infinite.
func checkFinite(name string, x []float64) error {
	for i, v := range x {
		if v-v != 0 {
			return argErr(name, i, "is %v, must be finite", v)
		}
	}
	return nil
}

// checkPaired is checkFinite for two slices of one length.
func checkPaired(xName string, x []float64, yName string, y []float64) error {
	if len(x) != len(y) {
		return argErr(yName, -1, "has %d elements, %s has %d", len(y), xName, len(x))
	}
	if len(x) > math.MaxInt32 { // ranks are counted in 32 bits
		return argErr(xName, -1, "has %d elements, must be at most %d", len(x), math.MaxInt32)
	}
	if err := checkFinite(xName, x); err != nil {
		return err
	}
	return checkFinite(yName, y)
}
