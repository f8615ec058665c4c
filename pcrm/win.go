package pcrm

import (
	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
)

// WinProbability is the probability of the choice, as the constrained loss itself reads a
// margin: the P at which m is where the expected loss
//
//	P L(m) + (1-P) L(-m)
//
// is least, with L of [PairLoss]. P is the share of annotators that choose the response whose
// score comes first in m. With
//
//	A = sigmoid(m) - sigmoid(-m-delta) = -L'(-m)
//	B = sigmoid(-m) - sigmoid(m-delta) = -L'(m)
//
// the derivative is (1-P) A - P B, so that
//
//	P = A/(A+B)   for |m| < delta/2
//
// The expected loss is strictly convex, and its derivative is at most 0 at -delta/2, where A is
// 0, and at least 0 at delta/2, where B is 0. So each P in [0, 1] has one optimum, and it lies
// between these two. A margin at delta/2 or over it is read as 1, and one at -delta/2 or below it
// as 0: beyond the targets no P has its optimum, and these are nearest.
//
// The odds are those of sigmoid(m) times a factor that is greater than 1 for m > 0,
//
//	P/(1-P) = exp(m) (1 - exp(-delta-2m)) (1 + exp(m-delta)) / ((1 - exp(2m-delta)) (1 + exp(-delta-m)))
//
// so that a model that has reached its optimum is right more often than sigmoid(m) says. The
// result is within 6 ulp of this; so is 1-P where it is computed as WinProbability(-m, delta).
//
// It holds for a pair whose delta does not depend on which response is the chosen one, as all
// priors have it but that of [Random]. Label smoothing moves no optimum where delta is finite
// (see the package documentation). With an infinite delta and a label smoothing of e the
// probability is (sigmoid(m) - e)/(1 - 2e), clipped to [0, 1], and not this function.
//
// It checks nothing: see [WinProbabilities].
//
// Special cases:
//
//	WinProbability(m, +Inf)      = sigmoid(m)
//	WinProbability(0, delta)     = 0.5
//	WinProbability(±Inf, delta)  = 1, 0
//	WinProbability(-m, delta)    = 1 - WinProbability(m, delta), for m > 0 to the last bit
//	WinProbability(NaN, delta)   = NaN
//	WinProbability(m, delta)     = NaN   for a delta that is NaN, 0 or less
func WinProbability(margin, delta float64) float64 { return numeric.WinProbability(margin, delta) }

// WinProbabilities writes [WinProbability] of every margin and its delta to dst, in float64
// rounded once. A NaN margin gives NaN.
//
// Errors, each an [*ArgumentError]: slices of different lengths, a delta that is not greater
// than 0 (named by its index); dst is then undefined. Empty slices are allowed.
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
