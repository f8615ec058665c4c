// Package stats computes statistics of a reward model's scores: accuracy, the size of the
// margins, calibration, and the rank correlation with human ratings and with the length of the
// responses. It estimates the reward of a policy that is optimized against the scores, and it removes
// length bias from scores. `pcrm report`, `pcrm optimize` and `pcrm calibrate` use this
// package. It is pure Go.
//
// A margin is m = chosen score - rejected score. P = sigmoid(m) is the probability that the
// model assigns to the observed choice. The pairs are unordered: which of the two responses a
// row names first carries no information, so P is never compared with a label of 0.
// Calibration therefore uses the confidence max(P, 1-P), in [0.5, 1].
//
// # Special cases
//
// Numbers must be finite. A NaN or an infinity is a *pcrm.ArgumentError that names the
// argument and the index. A statistic that is not defined is NaN, and the summaries omit it:
//
//	no numbers at all               every statistic
//	fewer than 2 points             rank correlations
//	all x or all y equal            rank correlations
//	no pair with a longer chosen    accuracy_longer_chosen; likewise accuracy_shorter_chosen
//	an infinite delta               residuals
//	one response in every pool      the standard deviations of Reference
//
// Ties: a margin of 0 is not a correct choice. In Spearman's correlation, equal numbers get
// the mean of their ranks. In the denominator of Kendall's tau-b, one factor leaves
// out the pairs that are tied in x, the other those tied in y.
package stats
