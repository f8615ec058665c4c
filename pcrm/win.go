package pcrm

import (
	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
)

// WinProbability returns the probability of the choice that the constrained loss assigns to
// a margin m: the P for which m minimizes the expected loss
//
//	P L(m) + (1-P) L(-m)
//
// with L of [PairLoss]. P is the fraction of annotators who choose the response whose score
// comes first in m. With
//
//	A = sigmoid(m) - sigmoid(-m-delta) = -L'(-m)
//	B = sigmoid(-m) - sigmoid(m-delta) = -L'(m)
//
// the derivative is (1-P) A - P B, so
//
//	P = A/(A+B)   for |m| < delta/2
//
// The expected loss is strictly convex. Its derivative is at most 0 at -delta/2, where A is
// 0, and at least 0 at delta/2, where B is 0. So each P in [0, 1] has exactly one optimum,
// and it lies between these two margins. A margin beyond delta/2 or -delta/2 is optimal for no
// P; WinProbability then returns the nearest P, which is 1 or 0.
//
// The odds are those of sigmoid(m) times a factor that is greater than 1 for m > 0:
//
//	P/(1-P) = exp(m) (1 - exp(-delta-2m)) (1 + exp(m-delta)) / ((1 - exp(2m-delta)) (1 + exp(-delta-m)))
//
// A model at its optimum is therefore right more often than sigmoid(m) says. The result is
// within 6 ulp of this formula, and so is 1-P if computed as WinProbability(-m, delta).
//
// The result is exact for a pair whose delta does not depend on which response is the chosen
// one. This holds for all priors except [Random]. Label smoothing does not move the optimum
// if delta is finite (see the package documentation). With an infinite delta and a label
// smoothing of e, the probability is (sigmoid(m) - e)/(1 - 2e), clipped to [0, 1], which this
// function does not compute.
//
// WinProbability does not check its arguments; see [WinProbabilities].
//
// Special cases:
//
//	WinProbability(m, +Inf)      = sigmoid(m)
//	WinProbability(0, delta)     = 0.5
//	WinProbability(±Inf, delta)  = 1, 0
//	WinProbability(m, delta)     = 1 - WinProbability(-m, delta), to the last bit for m > 0
//	WinProbability(NaN, delta)   = NaN
//	WinProbability(m, delta)     = NaN   for a delta that is NaN, 0 or less
func WinProbability(margin, delta float64) float64 { return numeric.WinProbability(margin, delta) }

// WinProbabilities writes [WinProbability] of every margin and its delta to dst, computed in
// float64 and rounded once. A NaN margin gives NaN. Empty slices are allowed.
//
// Errors, each an [*ArgumentError]: slices of different lengths; a delta that is not greater
// than 0 (the message names its index). After an error the contents of dst are undefined.
func WinProbabilities[F Float](dst, margins, deltas []F) error {
	if err := checkLengths("margins", len(margins),
		sliceLength{"dst", len(dst), true},
		sliceLength{"delta", len(deltas), true},
	); err != nil {
		return err
	}
	for i, d := range deltas {
		if err := argument.Positive("delta", i, d); err != nil {
			return err
		}
		dst[i] = F(WinProbability(float64(margins[i]), float64(d)))
	}
	return nil
}
