// Package half reads IEEE 754 half-precision numbers, which Go has no type for.
package half

import "math"

// Float64 converts exactly; a NaN stays a NaN, of unspecified payload.
func Float64(h uint16) float64 {
	if h&0x7c00 == 0x7c00 {
		if h&0x3ff != 0 {
			return math.NaN()
		}
		return math.Inf(1 - int(h>>15)*2)
	}
	return float64(Finite(h))
}

// Finite is Float64 but for infinities and NaNs, which it takes for larger numbers.
func Finite(h uint16) float32 {
	// The exponent and fraction land in the float32's places with a bias too small
	// by 127-15, which the product restores, subnormals included: both are exact.
	return math.Float32frombits(uint32(h&0x8000)<<16|uint32(h&0x7fff)<<13) * 0x1p112
}
