package pcrm

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

// bounds are the largest errors of a SIMD kernel against the reference in float64. They are
// derived operation by operation from eps = 2^-24 (2^-53), the error of one rounding, and the
// errors of the polynomials, exp and log (see internal/asmgen).
//
//	u, v   range reduction 1/4, last steps of the polynomial 1/3, 2^n 1, low part 1:
//	       3 eps + exp; and in float32 |x|/22 eps of ln 2, the same for both: ln2
//	s      u+v+uv: 4/3 of these, two roundings: 6 eps
//	loss   log1p has condition <= 1: 6; z = s/(2+s): 2; p(t): 2; the last sum 1: 11 of
//	       log1p, 2 of max(-m, over), 5 of e*delta and of centering. All terms are
//	       positive (-m + e*m loses one more): 12 eps + 4/3 (exp + ln2) + log
//	sum    at most 9 losses are added in float32: 8 eps more
//	g      |h| = |2m-delta| >= 0.34: v-u >= 0.28 max(u, v), so 2 (3 eps + exp) become
//	       18 eps + 6 exp; near: u expm1(h) has 8 + 2 exp. Denominator 1+s: 6.5,
//	       scale: 2: 27 eps + 7 exp + ln2.
//	       Outside of [0, delta] 1-uv >= min(1, delta)/1.6 has 7 eps + 2 exp + 2 ln2.
//
// In float32 this is 1.1e-6 of a loss and, for delta >= 0.34, 2e-6 of a gradient.
//
// Underflow: u and v are 0 below 2^-126 (2^-1022), which adds an error of that size.
//
// float64 does not carry the low parts, but neither does the reference, which has the same m
// and over. Only v-u then has an absolute error, 2*3 eps.
type bounds struct{ eps, exp, log, ln2, least float64 }

func boundsOf[F Float]() bounds {
	if unsafe.Sizeof(F(0)) == 4 {
		return bounds{0x1p-24, 1.1e-8, 1.3e-8, 4 * 0x1p-24, 0x1p-125}
	}
	return bounds{0x1p-53, 1.2e-15, 1.1e-14, 0, 0x1p-1021}
}

func (b bounds) loss(loss float64) float64 {
	return (12*b.eps+(b.exp+b.ln2)*4/3+b.log)*loss + b.least
}

func (b bounds) grad(g, pull, delta float64, s settings) float64 {
	relative := 27*b.eps + 7*b.exp + b.ln2
	if delta < 0.34 {
		relative += (7*b.eps + 2*b.exp + 2*b.ln2) * 1.6 / delta
	}
	free := 0.0
	if math.IsInf(delta, 1) { // g = e - sigmoid(-m): each part is at most |g|+e
		free = s.smoothing
	}
	absolute := 0x1p-52 // the error of the reference itself, a difference of two numbers up to 1
	if b.ln2 == 0 {     // float64
		absolute += 2 * (3*b.eps + b.exp)
	}
	return (relative*(math.Abs(g)+2*free)+absolute+6*b.eps*math.Abs(pull))*s.scale + b.least
}

// extremes are scores and deltas at which behavior changes: 0, underflow of exp in float32
// (88, 104) and in float64 (745), overflow, denormals.
var extremes = []float64{0, 1e-30, -1e-30, 88, -88, 87.3, -87.4, 104, -104, 745, -745, 1e4, -1e4, 1e30, -1e30,
	1e-40, -1e-40, 0.17, 16777216, -16777217, 1, 2, 3e38, -3e38, math.Inf(1), math.Inf(-1), math.NaN()}

// guard surrounds every destination. A kernel that writes outside changes it.
const guard = 12345.678

// guarded returns n elements at an odd offset between guards, and a function that checks the guards.
func guarded[F Float](n, offset int) (s []F, intact func() bool) {
	const zone = 16
	all := make([]F, zone+offset+n+zone)
	for i := range all {
		all[i] = F(guard)
	}
	s = all[zone+offset : zone+offset+n : zone+offset+n]
	return s, func() bool {
		for i, v := range all {
			if (i < zone+offset || i >= zone+offset+n) && v != F(guard) {
				return false
			}
		}
		return true
	}
}

func simdTiers() []tier.Tier {
	var t []tier.Tier
	for i := tier.AVX2; i <= tier.Best(); i++ {
		t = append(t, i)
	}
	return t
}

// checkBlock runs one tier and compares it with the reference in float64. It reports whether
// the kernel processed the block itself.
func checkBlock[F Float](t testing.TB, tr tier.Tier, chosen, rejected, delta []F, s settings, offset int, wantLosses, wantGrads bool) (took bool) {
	n := len(chosen)
	losses, lossesIntact := guarded[F](n, offset)
	gradChosen, chosenIntact := guarded[F](n, offset+1)
	gradRejected, rejectedIntact := guarded[F](n, offset+2)
	l, gc, gr := losses, gradChosen, gradRejected
	if !wantLosses {
		l = nil
	}
	if !wantGrads {
		gc, gr = nil, nil
	}
	sum := simdBlock(tr, l, gc, gr, chosen, rejected, delta, s)
	require.True(t, lossesIntact() && chosenIntact() && rejectedIntact(), "%v wrote outside", tr)

	b := boundsOf[F]()
	wide := func(x []F) []float64 {
		y := make([]float64, len(x))
		for i, v := range x {
			y[i] = float64(v)
		}
		return y
	}
	c64, r64, d64 := wide(chosen), wide(rejected), wide(delta)
	exact := make([]float64, n)
	want, ok := scalarBlock(exact, nil, nil, c64, r64, d64, s)
	if sum-sum != 0 {
		// Leaving a block to the loop is always correct, but must not happen for ordinary numbers.
		return false
	}
	require.True(t, ok && want-want == 0, "%v took a block whose sum is %v (ok %v)", tr, want, ok)
	total := 0.0
	margin := func(i int) float64 { // as the reference rounds m and over
		d := d64[min(i, len(d64)-1)]
		if math.IsInf(d, 1) {
			d = 0
		}
		return 0x1p-52 * (math.Abs(c64[i]-r64[i]) + math.Abs(c64[i]-r64[i]-d))
	}
	for i := range n {
		total += margin(i)
	}
	require.InDelta(t, want, sum, b.loss(want)+8*b.eps*want+float64(n)*b.least+total, "%v: sum of %v %v %v", tr, chosen, rejected, delta)
	for i := range n {
		d := d64[min(i, len(d64)-1)]
		if wantLosses {
			require.InDelta(t, exact[i], float64(losses[i]), b.loss(exact[i])+margin(i), "%v: loss of %v %v %v %+v", tr, chosen[i], rejected[i], d, s)
		}
		if wantGrads {
			_, g := PairLoss(c64[i]-r64[i], d, s.smoothing)
			pull := 2 * s.center * (c64[i] + r64[i])
			tolerance := b.grad(g, pull, d, s) + math.Min(1, margin(i))*s.scale
			require.InDelta(t, (pull+g)*s.scale, float64(gradChosen[i]), tolerance, "%v: gradient of %v %v %v %+v", tr, chosen[i], rejected[i], d, s)
			require.InDelta(t, (pull-g)*s.scale, float64(gradRejected[i]), tolerance, "%v: gradient of %v %v %v %+v", tr, chosen[i], rejected[i], d, s)
		}
	}
	return true
}

func TestTiersOnEveryLength(t *testing.T) {
	t.Run("float32", everyLength[float32])
	t.Run("float64", everyLength[float64])
}

func everyLength[F Float](t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, tr := range simdTiers() {
		for n := range 68 {
			for offset := range 3 {
				chosen, _ := guarded[F](n, offset)
				rejected, _ := guarded[F](n, 2-offset)
				delta, _ := guarded[F](n, 1)
				for i := range n {
					chosen[i], rejected[i] = F(r.NormFloat64()*4), F(r.NormFloat64()*4)
					delta[i] = F(math.Exp(r.NormFloat64() * 2))
					if r.IntN(3) == 0 {
						delta[i] = F(math.Inf(1))
					}
				}
				for mode := range 16 {
					s := settings{scale: 1}
					if mode&1 != 0 {
						s.scale = 1 / float64(n+1)
					}
					if mode&2 != 0 {
						s.smoothing, s.center = 0.1, 0.01
					}
					d := delta
					if offset == 2 && n > 0 {
						d = delta[:1]
					}
					require.True(t, checkBlock(t, tr, chosen, rejected, d, s, offset, mode&4 != 0, mode&8 != 0), "%v gave back ordinary numbers", tr)
				}
			}
		}
	}
}

// Every combination of extreme scores and deltas, one at a time among ordinary pairs. The float32
// kernel must process everything that float32 can represent.
func TestTiersOnExtremes(t *testing.T) {
	t.Run("float32", onExtremes[float32])
	t.Run("float64", onExtremes[float64])
}

func onExtremes[F Float](t *testing.T) {
	for _, tr := range simdTiers() {
		for _, w := range extremes {
			for _, l := range extremes {
				for _, d := range extremes {
					for _, s := range []settings{{scale: 1}, {scale: 0.25, smoothing: 0.25, center: 0.5}} {
						chosen, rejected, delta := []F{1, F(w), 2}, []F{0, F(l), 3}, []F{4, F(d), F(math.Inf(1))}
						took := checkBlock(t, tr, chosen, rejected, delta, s, 1, true, true)
						ordinary := F(d) > 0 && math.Abs(w) <= 1e4 && math.Abs(l) <= 1e4
						if ordinary && !took {
							t.Fatalf("%v gave back %v %v %v", tr, w, l, d)
						}
						// Whether the kernel or the loop computes it, the result agrees with the reference in ok and kind.
						sum, ok := rewardBlock(nil, nil, nil, chosen, rejected, delta, s)
						want, wantOK := scalarBlock(nil, nil, nil, chosen, rejected, delta, s)
						require.Equal(t, wantOK, ok)
						require.Equal(t, fmt.Sprint(want-want), fmt.Sprint(sum-sum))
					}
				}
			}
		}
	}
}

// The gradient near its zero, where it is a difference, and the loss far out, where the rounding
// error of the margin would dominate if it were not carried along.
func TestFloat32KeepsItsPrecision(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, tr := range simdTiers() {
		for range 200 {
			n := 64
			chosen, rejected, delta := make([]float32, n), make([]float32, n), make([]float32, n)
			for i := range n {
				delta[i] = float32(0.4 + 60*r.Float64())
				rejected[i] = float32(r.NormFloat64() * 10)
				switch i % 3 {
				case 0: // near the target
					chosen[i] = rejected[i] + delta[i]/2 + float32(0.1*r.NormFloat64())
				case 1: // far out
					chosen[i] = rejected[i] + float32(80*r.Float64())
					delta[i] = float32(math.Inf(1))
				case 2: // large scores near the ceiling
					rejected[i] *= 1000
					delta[i] *= 1000
					chosen[i] = rejected[i] + delta[i] + float32(r.NormFloat64())
				}
			}
			require.True(t, checkBlock(t, tr, chosen, rejected, delta, settings{scale: 1}, 0, true, true))
		}
	}
}

func FuzzTiers(f *testing.F) {
	for _, w := range []float32{0, 1, -88, 1e30, float32(math.Inf(1)), float32(math.NaN())} {
		f.Add(w, float32(2), float32(4), 0.0, 0.0, uint8(17))
		f.Add(float32(3), w, float32(math.Inf(1)), 0.1, 0.01, uint8(5))
	}
	f.Fuzz(func(t *testing.T, w, l, d float32, smoothing, center float64, n uint8) {
		s := settings{scale: 1, smoothing: smoothing, center: center}
		if !(smoothing >= 0 && smoothing < 0.5 && center >= 0 && center <= 1) || float64(float32(smoothing)) < smoothing/2 || center != 0 && center < 1e-3 {
			t.Skip()
		}
		if m := w - l; float64(m) > 3e38 && math.IsInf(float64(d), 1) {
			t.Skip() // the only margin, MaxFloat32, that appears to be at its ceiling
		}
		// Neighbors that differ from the fuzzed pair, so that mixed-up lanes are detected.
		size := int(n)%67 + 1
		chosen, rejected, delta := make([]float32, size), make([]float32, size), make([]float32, size)
		for i := range size {
			chosen[i], rejected[i], delta[i] = float32(i), float32(size/2), float32(1+i)
		}
		at := int(n) % size
		chosen[at], rejected[at], delta[at] = w, l, d
		wide := func(x []float32) []float64 {
			y := make([]float64, len(x))
			for i, v := range x {
				y[i] = float64(v)
			}
			return y
		}
		for _, tr := range simdTiers() {
			checkBlock(t, tr, chosen, rejected, delta, s, 1, true, true)
			checkBlock(t, tr, wide(chosen), wide(rejected), wide(delta), s, 1, true, true)
		}
	})
}
