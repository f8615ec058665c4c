package checkpoint

import (
	"encoding/binary"
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/safetensors"
)

var order = binary.LittleEndian

// block is the number of elements that are summed at a time, so that their sums stay in a
// first-level cache.
const block = 2048

// mean writes sum_i weights[i] in[i] / total to dst, summing in this order and rounding every
// operation. It returns the number of results that are NaN or infinite. sums is scratch memory
// for a block.
func mean(dst []byte, in [][]byte, dtype string, weights []float64, total float64, sums []float64) (notFinite int64) {
	size := safetensors.Size(dtype)
	for at := 0; at < len(dst); at += block * size {
		end := min(at+block*size, len(dst))
		s := sums[:(end-at)/size]
		for i, data := range in {
			if i == 0 {
				scale(s, data[at:end], dtype, weights[i])
			} else {
				accumulate(s, data[at:end], dtype, weights[i])
			}
		}
		notFinite += quotient(dst[at:end], s, dtype, total)
		if dtype == "F64" {
			restore(dst[at:end], at, in)
		}
	}
	return notFinite
}

// restore ensures that the mean of equal float64 numbers is that number; it could be off by one
// unit in the last place. For narrower types rounding ensures this, because the float64 error is
// less than half of their last place.
func restore(dst []byte, at int, in [][]byte) {
next:
	for i := 0; i < len(dst); i += 8 {
		first := order.Uint64(in[0][at+i:])
		for _, data := range in[1:] {
			if order.Uint64(data[at+i:]) != first {
				continue next
			}
		}
		order.PutUint64(dst[i:], first)
	}
}

// scale sets sums to weight times the numbers in data.
func scale(sums []float64, data []byte, dtype string, weight float64) {
	n := scaleSIMD(sums, data, dtype, weight)
	sums = sums[n:]
	safetensors.Float64s(sums, data[n*safetensors.Size(dtype):], dtype)
	for i, v := range sums {
		sums[i] = weight * v
	}
}

// accumulate adds weight times the numbers in data to sums. Both operations are rounded.
func accumulate(sums []float64, data []byte, dtype string, weight float64) {
	n := accumulateSIMD(sums, data, dtype, weight)
	var x [block]float64
	sums = sums[n:]
	safetensors.Float64s(x[:len(sums)], data[n*safetensors.Size(dtype):], dtype)
	for i, v := range x[:len(sums)] {
		sums[i] += float64(weight * v) // the conversion prevents a fused multiply-add
	}
}

// quotient writes sums divided by total to dst, rounded once to nearest even, and returns the
// number of results that are NaN or infinite. It overwrites sums.
func quotient(dst []byte, sums []float64, dtype string, total float64) (notFinite int64) {
	n := quotientSIMD(dst, sums, dtype, total)
	sums, dst = sums[n:], dst[n*safetensors.Size(dtype):]
	for i := range sums {
		sums[i] /= total
	}
	encode(dst, sums, dtype)
	safetensors.Float64s(sums, dst, dtype)
	for _, v := range sums {
		if v-v != 0 {
			notFinite++
		}
	}
	return notFinite
}

func encode(data []byte, x []float64, dtype string) {
	switch dtype {
	case "F64":
		for i, v := range x {
			order.PutUint64(data[8*i:], math.Float64bits(v))
		}
	case "F32":
		for i, v := range x {
			order.PutUint32(data[4*i:], math.Float32bits(float32(v)))
		}
	case "BF16":
		for i, v := range x {
			order.PutUint16(data[2*i:], bfloat16(v))
		}
	case "F16":
		for i, v := range x {
			order.PutUint16(data[2*i:], float16(v))
		}
	}
}

// odd returns the bits of x as a float32 rounded to odd: truncated, with the last bit set if
// the truncation is inexact. Rounding this to nearest, to at least two bits less, gives the same
// result as rounding x directly. Rounding to nearest twice does not.
func odd(x float64) uint32 {
	f := float32(x)
	y, b := float64(f), math.Float32bits(f)
	if math.Abs(y) > math.Abs(x) {
		b--
	}
	if y != x {
		b |= 1
	}
	return b
}

// bfloat16 rounds to nearest even. The low bits of a NaN that came from a bfloat16 are zero, so
// rounding does not carry into its payload.
func bfloat16(x float64) uint16 {
	b := odd(x)
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// float16 rounds to nearest even.
func float16(x float64) uint16 {
	b := odd(x)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000: // NaN
		return sign | 0x7e00
	case b >= 0x47800000: // 2^16 and more
		return sign | 0x7c00
	case b < 0x38800000: // below 2^-14 the last place is 2^-24, as for 0.5 in float32
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-math.Float32bits(0.5))
	}
	b -= (127 - 15) << 23
	return sign | uint16((b+0xfff+b>>13&1)>>13)
}
