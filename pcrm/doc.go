// Package pcrm is the mathematics of prior-constrained preference losses: it is
// pure Go, without cgo, and the one place where each formula is written down.
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
// [Constraint] for the curve, [RewardLoss] for a batch with its gradient and
// [LengthRatio] for a prior that needs nothing but token ids.
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
// All arithmetic is done in float64 and rounded once to the type of the
// destination. A batch is summed in blocks of 4096 pairs whose sums are added in
// order, so a result depends on nothing but its input. Destinations come first
// and must not overlap any other argument. Nothing is allocated.
//
// # Source
//
// "Prior Constraints-based Reward Model Training for Aligning Large Language
// Models", arXiv 2404.00978.
package pcrm
