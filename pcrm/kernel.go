package pcrm

import (
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

// Tier returns the name of the kernels in use: "scalar", "avx2" or "avx512". At start the
// fastest tier that the processor supports is chosen, unless the environment variable
// PCRM_TIER names another. A name that is unknown or not available on this machine is
// ignored, with a line on standard error that lists the available names. The packages prior
// and checkpoint use the same tier.
func Tier() string { return tier.Current().String() }

// SetTier selects the kernels for all later calls: "scalar", "avx2", "avx512", or "auto"
// for the fastest. It is meant for tests and diagnosis; the tiers differ only in the last
// digits.
//
// Errors: an [*ArgumentError] for any other name, or for a tier that this processor or
// build does not support.
func SetTier(name string) error { return tier.Set(name) }

// settings are the numbers that a kernel takes in addition to its slices.
type settings struct {
	scale, smoothing, center float64
	checkFinite              bool
}

// rewardBlock is the only place that selects between the tiers. It computes the loop in the
// documentation of [RewardLoss]. losses may be nil, both gradients may be nil, and a delta
// of one element applies to all pairs. sum is the unscaled sum of the losses. ok is false,
// and the destinations are undefined, if a delta is not greater than 0 or if checkFinite is
// set and a score is not finite.
//
// SIMD handles the finite blocks. All special cases (NaN, infinities, overflow, invalid
// deltas) give a sum that is not finite; the scalar loop then computes the block.
func rewardBlock[F Float](losses, gradChosen, gradRejected, chosen, rejected, delta []F, s settings) (sum float64, ok bool) {
	if t := tier.Current(); t != tier.Scalar {
		if sum = simdBlock(t, losses, gradChosen, gradRejected, chosen, rejected, delta, s); sum-sum == 0 {
			return sum, true
		}
	}
	return scalarBlock(losses, gradChosen, gradRejected, chosen, rejected, delta, s)
}

// scalarBlock is the plain loop in float64, the reference for the other kernels.
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
