// Package half converts IEEE 754 half-precision numbers, for which Go has no type.
package half

import "math"

// Float64 converts exactly. A NaN stays a NaN with an unspecified payload.
func Float64(h uint16) float64 {
	if h&0x7c00 == 0x7c00 {
		if h&0x3ff != 0 {
			return math.NaN()
		}
		return math.Inf(1 - int(h>>15)*2)
	}
	return float64(Finite(h))
}

// Finite is Float64 for finite numbers. It returns large finite numbers for infinities and NaNs.
func Finite(h uint16) float32 {
	// Exponent and fraction move to their places in a float32, whose bias is then too small
	// by 127-15. The product corrects this. Both steps are exact, also for subnormals.
	return math.Float32frombits(uint32(h&0x8000)<<16|uint32(h&0x7fff)<<13) * 0x1p112
}
