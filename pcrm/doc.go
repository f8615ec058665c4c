// Package pcrm computes prior-constrained preference losses in pure Go, without cgo. It
// is the single source of each formula.
//
// # The loss
//
// A reward model scores a chosen response w and a rejected response l. With the
// margin m = r_w - r_l and the constraint delta of the pair, the loss is
//
//	L(m)  = -log sigmoid(m) - log sigmoid(delta - m)
//	dL/dm = sigmoid(m - delta) - sigmoid(-m)
//
// so dL/dr_w = dL/dm and dL/dr_l = -dL/dm. The first term pushes the scores
// apart. The second pulls them together, the more the closer the margin is to
// delta. L is convex and symmetric about its minimum, the target m* = delta/2.
// The minimum, 2 softplus(-delta/2), is not zero, so do not compare the value
// with a Bradley-Terry loss. With delta = +Inf the second term vanishes and L is
// the Bradley-Terry loss.
//
// The constraint comes from the prior similarity s in [0, 1] of the two
// responses. No gradient flows through it:
//
//	delta(s) = beta1/(s+beta2) + beta3, clipped to [floor, cap]
//
// Similar responses (s near 1) get a small ceiling, dissimilar ones a large one.
// [Constraint] documents the curve. Package prior computes the similarities; its
// LengthRatio needs only token ids.
//
// [RewardLoss] computes the loss and gradient of a batch. [TokenLoss] is the form of
// the authors' released code, which applies the pair loss at every token of a
// [Span]. [DPOLoss] replaces m by the difference of the implicit rewards.
//
// # What a margin means
//
// Under the Bradley-Terry loss the probability of the choice is sigmoid(m). The
// constrained loss is a proper loss with a different link, [WinProbability]. A model at
// the optimum of the constrained loss is right more often than sigmoid(m) says.
//
// # Label smoothing
//
// Label smoothing by e swaps the two responses with weight e. For a finite delta the
// smoothed loss is L(m) + e*delta, because softplus(m) - softplus(-m) = m, so its
// gradient does not depend on e. With delta = +Inf it is
// (1-e) softplus(-m) + e softplus(m), whose gradient does depend on e. As delta grows,
// the smoothed loss therefore does not converge to that of delta = +Inf.
//
// # Rounding and aliasing
//
// The plain loop over [PairLoss] defines the results: it computes in float64 and rounds
// once to the type of the destination. On amd64, AVX2 or AVX-512 kernels compute the same
// loop if the processor has these instructions (see [Tier]; the build tag purego leaves
// the kernels out). The kernels differ from the loop by at most
//
//	float64  2e-14 of the loss; 5e-15 of the terms of the gradient, which are at most 1
//	float32  1.1e-6 of the loss; 2e-6 of the gradient if delta is at least 0.34
//
// plus 2^-1021 for float64 and 2^-125 for float32, because the kernels replace
// exp(-|x|) by 0 where it is below the smallest normal number. float32 scores may have any value, because the rounding error of the
// margin is carried along. A block with a NaN, an infinite score or an overflow is
// left to the loop, so special values are those of [PairLoss] everywhere. [DPOLoss]
// computes in float64 for both types.
//
// A batch is summed in float64, in blocks of 4096 pairs whose sums are added in
// order. A result depends on the input and the tier, but not on the number of
// threads ([SetNumThreads]).
//
// Destinations come first and must not overlap any other argument. Inputs may have
// any alignment and may overlap each other. Nothing outside the given slices is
// read or written, and nothing is allocated.
//
// # Verification
//
// Package trace recomputes the losses and gradients that a training run recorded,
// whatever backend the run used. Package pcrmtest tests other implementations of the loss
// against the properties that define it.
//
// # Source
//
// "Prior Constraints-based Reward Model Training for Aligning Large Language
// Models", arXiv 2404.00978.
package pcrm
