// Package stats says what a reward model's scores are like: how often they are
// right, how large their margins are, how well calibrated, and how they rank
// responses beside people's ratings and beside plain length; and what a policy gets
// that is optimized against them. It also takes out of them what length alone lets one
// expect. `pcrm report`, `pcrm optimize` and `pcrm calibrate` are made of it; it is pure
// Go.
//
// A margin is m = chosen score - rejected score, and P = sigmoid(m) the probability
// that the model gives to the choice that was made. The pairs are unordered: which
// of the two responses a row names first carries no information, so P is never
// compared with a label 0. Calibration then looks at the confidence max(P, 1-P), in
// [0.5, 1].
//
// # Special cases
//
// Numbers must be finite: a NaN or an infinity is an [*pcrm.ArgumentError] that names
// the argument and the index. A statistic that the numbers do not define is NaN, and
// the summaries leave it out:
//
//	no numbers at all              every statistic
//	fewer than 2 points            rank correlations
//	x or y the same throughout     rank correlations
//	no pair with a longer chosen   AccuracyLonger; likewise AccuracyShorter
//	an infinite delta              residuals
//	a response in each pool        the standard deviations of Reference
//
// Ties: a margin of 0 is not a correct choice. Equal numbers have the mean of their
// ranks in Spearman's correlation, and tau-b counts them out of both pairs' sides.
package stats
