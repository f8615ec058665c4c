package checkpoint

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/internal/safetensors"
)

// format describes an IEEE 754 type: the number of digits and the least exponent.
type format struct {
	dtype          string
	digits, least  int
	largest        float64
	bits, infinity uint64
}

var formats = []format{
	{"F64", 53, -1022, math.MaxFloat64, 64, 0x7ff << 52},
	{"F32", 24, -126, math.MaxFloat32, 32, 0x7f800000},
	{"BF16", 8, -126, 0xffp120, 16, 0x7f80},
	{"F16", 11, -14, 65504, 16, 0x7c00},
}

// nearest rounds x to a format, with RoundToEven in units of the last place. These units are
// powers of two, so nothing else rounds.
func (f format) nearest(x float64) float64 {
	if x == 0 || x-x != 0 || f.digits == 53 {
		return x
	}
	_, exponent := math.Frexp(x)
	place := max(exponent-1, f.least) - f.digits + 1
	r := math.Copysign(math.Ldexp(math.RoundToEven(math.Ldexp(x, -place)), place), x)
	if math.Abs(r) > f.largest {
		return math.Copysign(math.Inf(1), x)
	}
	return r
}

func (f format) encode(x ...float64) []byte {
	data := make([]byte, len(x)*int(f.bits)/8)
	encode(data, x, f.dtype)
	return data
}

func (f format) decode(data []byte) []float64 {
	x := make([]float64, len(data)*8/int(f.bits))
	safetensors.Float64s(x, data, f.dtype)
	return x
}

// any returns a number of the format: random bits, a signed zero, or a finite number of
// moderate size.
func (f format) any(random *rand.Rand) float64 {
	bits := random.Uint64() >> (64 - f.bits)
	var data [8]byte
	order.PutUint64(data[:], bits)
	switch x := f.decode(data[:f.bits/8])[0]; random.IntN(8) {
	case 0:
		return x
	case 1:
		return math.Copysign(0, x)
	default:
		return f.nearest(random.NormFloat64())
	}
}

// tiers runs a test with the plain loops and with the kernels.
func tiers(t testing.TB, test func(t testing.TB, tier string)) {
	before := pcrm.Tier()
	defer func() { require.NoError(t, pcrm.SetTier(before)) }()
	for _, tier := range []string{"scalar", "auto"} {
		require.NoError(t, pcrm.SetTier(tier))
		test(t, tier)
	}
}

func same(a, b float64) bool {
	return math.Float64bits(a) == math.Float64bits(b) || a != a && b != b
}

// Rounding is to nearest, ties to even, at every number of the narrow types, at the ties
// between them and one float64 unit to both sides.
func TestRounding(t *testing.T) {
	tiers(t, func(t testing.TB, tier string) {
		for _, f := range formats {
			var x []float64
			for i := range uint64(1) << 16 {
				var data [8]byte
				order.PutUint64(data[:], i<<(f.bits-16))
				a := f.decode(data[:f.bits/8])[0]
				if a-a != 0 {
					continue
				}
				_, exponent := math.Frexp(a)
				half := math.Ldexp(1, max(exponent-1, f.least)-f.digits)
				tie := a + half
				x = append(x, a, tie, math.Nextafter(tie, math.Inf(1)), math.Nextafter(tie, math.Inf(-1)), a*(1+0x1p-40), a+half/2)
			}
			x = append(x, f.largest, f.largest*(1+math.Ldexp(1, -f.digits-1)), 0x1p-1074, -0x1p-160, math.Inf(1), math.Inf(-1))
			got := make([]byte, len(f.encode(x...)))
			for at := 0; at < len(x); at += block {
				end := min(at+block, len(x))
				quotient(got[at*int(f.bits)/8:end*int(f.bits)/8], slices.Clone(x[at:end]), f.dtype, 1)
			}
			for i, y := range f.decode(got) {
				if want := f.nearest(x[i]); !same(y, want) {
					t.Fatalf("%s %s: %x must be %x, got %x", tier, f.dtype, x[i], y, want)
				}
			}
		}
	})
}

// The kernels divide without a division instruction. Quotients at or next to a tie reveal
// errors in the last bit.
func TestQuotient(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	tiers(t, func(t testing.TB, tier string) {
		for _, f := range formats[1:] {
			for range 300 {
				total := 0.5 + random.Float64()/2
				if random.IntN(3) == 0 { // the sum that weights of 1 give
					n := float64(1 + random.IntN(20))
					_, exponent := math.Frexp(n)
					total = math.Ldexp(n, -exponent)
				}
				var sums, want []float64
				for range 61 {
					a := f.nearest(random.NormFloat64())
					_, exponent := math.Frexp(a)
					sum := (a + math.Ldexp(1, exponent-1-f.digits)) * total
					for range random.IntN(3) {
						sum = math.Nextafter(sum, math.Inf(2*random.IntN(2)-1))
					}
					sums, want = append(sums, sum), append(want, f.nearest(sum/total))
				}
				got := f.encode(sums...)
				require.Zero(t, quotient(got, slices.Clone(sums), f.dtype, total))
				for i, y := range f.decode(got) {
					if !same(y, want[i]) {
						t.Fatalf("%s %s: %x / %x must be %x, got %x", tier, f.dtype, sums[i], total, y, want[i])
					}
				}
			}
		}
	})
}

// Arbitrary numbers of arbitrary count against the formula. Nothing else is written.
func TestMean(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	tiers(t, func(t testing.TB, tier string) {
		for _, f := range formats {
			size := safetensors.Size(f.dtype)
			lengths := []int{block - 1, block, block + 1, 3*block + 5}
			for n := range 70 {
				lengths = append(lengths, n)
			}
			for _, n := range lengths {
				models := 2 + random.IntN(4)
				in, weights, total := make([][]byte, models), make([]float64, models), 0.0
				numbers := make([][]float64, models)
				for i := range in {
					weights[i] = float64(1 + random.IntN(4))
					if random.IntN(2) == 0 {
						weights[i] = random.Float64()
					}
					total += weights[i]
					x := make([]float64, n)
					for j := range x {
						x[j] = f.any(random)
						if random.IntN(3) == 0 && i > 0 {
							x[j] = numbers[i-1][j]
						}
					}
					in[i] = f.encode(x...)
					numbers[i] = f.decode(in[i])
				}
				dst := slices.Repeat([]byte{0xa5}, (n+2)*size)
				notFinite := mean(dst[size:(n+1)*size], in, f.dtype, weights, total, make([]float64, block))
				guard := slices.Repeat([]byte{0xa5}, size)
				require.Equal(t, guard, dst[:size], "%s %s", tier, f.dtype)
				require.Equal(t, guard, dst[(n+1)*size:], "%s %s", tier, f.dtype)
				var count int64
				for j, y := range f.decode(dst[size : (n+1)*size]) {
					first := numbers[0][j]
					want, equal := weights[0]*first, true
					for i := 1; i < models; i++ {
						x := numbers[i][j]
						want += float64(weights[i] * x)
						equal = equal && same(x, first)
					}
					if want = f.nearest(want / total); equal {
						want = first
					}
					if !same(y, want) {
						t.Fatalf("%s %s: number %d of %d must be %x, got %x", tier, f.dtype, j, n, y, want)
					}
					if y-y != 0 {
						count++
					}
				}
				assert.Equal(t, count, notFinite, "%s %s", tier, f.dtype)
			}
		}
	})
}

// The mean of a number with itself is that number, for all numbers of the 16-bit types.
func TestIdentity(t *testing.T) {
	tiers(t, func(t testing.TB, tier string) {
		for _, f := range formats {
			data := make([]byte, 1<<16*f.bits/8)
			for i := range uint64(1) << 16 {
				bits := i << (f.bits - 16)
				if bits<<(64-f.bits)<<1>>1 > f.infinity<<(64-f.bits) {
					bits = i // not a NaN
				}
				var word [8]byte
				order.PutUint64(word[:], bits)
				copy(data[i*f.bits/8:], word[:f.bits/8])
			}
			for _, weights := range [][]float64{{1, 1}, {1, 1, 1}, {0.1, 0.2, 0.7}, slices.Repeat([]float64{0.1}, 10), {0, 3, 1e-300}} {
				total := 0.0
				for _, w := range weights {
					total += w
				}
				got := make([]byte, len(data))
				mean(got, slices.Repeat([][]byte{data}, len(weights)), f.dtype, weights, total, make([]float64, block))
				means := f.decode(got)
				for i, x := range f.decode(data) {
					// 0 times infinity is NaN.
					if y := means[i]; !same(x, y) && (x-x == 0 || weights[0] != 0) {
						t.Fatalf("%s %s %v: the mean of %x is %x", tier, f.dtype, weights, x, y)
					}
				}
			}
		}
	})
}

func BenchmarkMean(b *testing.B) {
	for _, f := range formats {
		for _, models := range []int{2, 3} {
			b.Run(fmt.Sprintf("%s/%d", f.dtype, models), func(b *testing.B) {
				x := make([]float64, pieceElements)
				for i := range x {
					x[i] = math.Sin(float64(i))
				}
				in := slices.Repeat([][]byte{f.encode(x...)}, models)
				weights, sums, dst := slices.Repeat([]float64{1}, models), make([]float64, block), f.encode(x...)
				for b.Loop() {
					mean(dst, in, f.dtype, weights, float64(models), sums)
				}
				b.ReportMetric(b.Elapsed().Seconds()*1e9/float64(b.N)/pieceElements, "ns/number")
			})
		}
	}
}
