package pcrm

import (
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

// Tier returns the name of the kernels in use: "scalar", "avx2" or "avx512". The
// fastest that the processor has is chosen at start, unless the environment
// variable PCRM_TIER names another. A name that is unknown or not available on this
// machine is ignored, with a line on standard error that lists the names. The tier is
// that of the packages prior and checkpoint too.
func Tier() string { return tier.Current().String() }

// SetTier chooses the kernels for all later calls: "scalar", "avx2", "avx512", or
// "auto" for the fastest. It is for tests and diagnosis: the tiers differ in the
// last digits only.
//
// Errors: a name that is none of these, or of a tier that this processor or build
// does not have.
func SetTier(name string) error { return tier.Set(name) }

// settings are the numbers that a kernel needs beside its slices.
type settings struct {
	scale, smoothing, center float64
	checkFinite              bool
}

// rewardBlock is the one switch between the tiers. It is the loop in the
// documentation of [RewardLoss]; losses may be nil, both gradients may be nil, and
// a delta of one element serves all pairs. The sum is of the losses, unscaled. ok is
// false, and the destinations undefined, when a delta is not greater than 0 or a
// score is not what checkFinite asks for.
//
// SIMD takes the finite blocks; all that is special (NaN, infinities, overflow, bad
// deltas) shows as a sum that is not finite and is left to the scalar loop.
func rewardBlock[F Float](losses, gradChosen, gradRejected, chosen, rejected, delta []F, s settings) (sum float64, ok bool) {
	if t := tier.Current(); t != tier.Scalar {
		if sum = simdBlock(t, losses, gradChosen, gradRejected, chosen, rejected, delta, s); sum-sum == 0 {
			return sum, true
		}
	}
	return scalarBlock(losses, gradChosen, gradRejected, chosen, rejected, delta, s)
}

// scalarBlock is the plain loop, in float64, which the other kernels are held against.
func scalarBlock[F Float](losses, gradChosen, gradRejected, chosen, rejected, delta []F, s settings) (sum float64, ok bool) {
	for i := range chosen {
		w, l, d := float64(chosen[i]), float64(rejected[i]), float64(delta[min(i, len(delta)-1)])
		if !(d > 0) || s.checkFinite && (notFinite(w) || notFinite(l)) {
			return 0, false
		}
		loss, g := PairLoss(w-l, d, s.smoothing)
		pull := 0.0
		if s.center != 0 { // 0*inf would be NaN
			loss += s.center * (w + l) * (w + l)
			pull = 2 * s.center * (w + l)
		}
		sum += loss
		if losses != nil {
			losses[i] = F(loss)
		}
		if gradChosen != nil {
			gradChosen[i] = F((g + pull) * s.scale)
			gradRejected[i] = F((pull - g) * s.scale)
		}
	}
	return sum, true
}

func notFinite(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }
