// Package pcrm computes prior-constrained preference losses in pure Go, without cgo. It
// is the one place where each formula is written down.
//
// # The loss
//
// A reward model scores a chosen response w and a rejected one l. With the
// margin m = r_w - r_l and the constraint delta of the pair, the loss is
//
//	L(m)  = -log sigmoid(m) - log sigmoid(delta - m)
//	dL/dm = sigmoid(m - delta) - sigmoid(-m)
//
// so dL/dr_w = dL/dm and dL/dr_l = -dL/dm. The first term pulls the scores
// apart, the second keeps them from passing delta. L is convex and symmetric
// about its minimum, the target m* = delta/2, where it is 2 softplus(-delta/2):
// that floor is not zero, so never compare the value with a Bradley-Terry loss.
// With delta = +Inf the second term is gone and L is the Bradley-Terry loss.
//
// The constraint comes from the prior similarity s in [0, 1] of the two
// responses, and no gradient flows through it:
//
//	delta(s) = beta1/(s+beta2) + beta3, clipped to [floor, cap]
//
// Alike responses (s near 1) get a small ceiling, unlike ones a large one. See
// [Constraint] for the curve and package prior for the similarities. Its LengthRatio
// needs nothing but token ids.
//
// [RewardLoss] is the loss of a batch with its gradient. [TokenLoss] is the form of
// the authors' released code, which applies the pair loss at every token of a
// [Span]. [DPOLoss] puts the difference of the implicit rewards in the place of m.
//
// # What a margin means
//
// By the Bradley-Terry loss the probability of the choice is sigmoid(m). The constrained
// loss is a proper loss of another link, [WinProbability], by which a model at its optimum
// is right more often than sigmoid(m) says.
//
// # Label smoothing
//
// Smoothing by e swaps the two responses with weight e. For a finite delta this
// gives L(m) + e*delta, because softplus(m) - softplus(-m) = m: the gradient does
// not depend on e. With delta = +Inf it is (1-e) softplus(-m) + e softplus(m) and
// does act. A large delta is therefore not the limit of the smoothed loss.
//
// # Rounding and aliasing
//
// Results are defined by the plain loop over [PairLoss], in float64, rounded once to the
// type of the destination. On amd64 the same loop runs on AVX2 or AVX-512 where the
// processor has them (see [Tier]; the build tag purego leaves them out). These
// kernels differ from the loop by at most
//
//	float64  2e-14 of a loss; 5e-15 of a gradient's terms, which are up to 1
//	float32  1.1e-6 of a loss; 2e-6 of a gradient whose delta is at least 0.34
//
// and, as they take exp(-|x|) under the smallest normal number for 0, by 2^-1021
// and 2^-125. float32 scores may be anything: the margin's rounding error is
// carried along. A block with a NaN, an infinite score or an overflow is left to
// the loop, so that special values are those of [PairLoss] everywhere. [DPOLoss]
// computes in float64 for both types.
//
// A batch is summed in float64, in blocks of 4096 pairs whose sums are added in
// order: a result depends on its input and the tier, and not on the number of
// threads ([SetNumThreads]).
//
// Destinations come first and must not overlap any other argument; inputs may be at
// any alignment and may overlap each other. Nothing outside the given slices is
// read or written, and nothing is allocated.
//
// # Verification
//
// Package trace recomputes what a training run recorded, whatever ran it. Package
// pcrmtest tests another implementation of the loss by the properties that define it.
//
// # Source
//
// "Prior Constraints-based Reward Model Training for Aligning Large Language
// Models", arXiv 2404.00978.
package pcrm
