package pcrm

import (
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// Reduction is how the losses of a batch are reduced.
type Reduction int

const (
	Mean Reduction = iota // the mean; the gradient is that of the mean
	Sum                   // the sum; the gradient is that of the sum
	None                  // no reduction; the gradient of pair i is that of its own loss
)

// blockPairs is the number of pairs that are summed before their sum is added to the
// total. 4096 float64 scores take 32 KiB, the size of a first-level cache. The error of
// a sum of n terms falls from n to 4096 + n/4096 roundings.
const blockPairs = 4096

// PairLoss returns the loss of one pair and its derivative with respect to the margin.
//
//	finite delta:  L = softplus(-m) + softplus(m-delta) + e*delta
//	               g = sigmoid(m-delta) - sigmoid(-m)
//	delta = +Inf:  L = (1-e) softplus(-m) + e softplus(m)
//	               g = e - sigmoid(-m)
//
// e is the label smoothing. The package documentation explains why it does not affect
// the gradient if delta is finite. PairLoss does not check its arguments.
//
// Special cases:
//
//	PairLoss(NaN, delta, e)  = NaN, NaN
//	PairLoss(m, NaN, e)      = NaN, NaN
//	PairLoss(+Inf, delta, e) = +Inf, 1      for finite delta
//	PairLoss(-Inf, delta, e) = +Inf, -1     for finite delta
//	PairLoss(+Inf, +Inf, 0)  = 0, 0
//	PairLoss(-Inf, +Inf, 0)  = +Inf, -1
func PairLoss(margin, delta, labelSmoothing float64) (loss, grad float64) {
	// With u = exp(-|x|), softplus(x) = max(x, 0) + log1p(u) and sigmoid(-|x|) =
	// u/(1+u). Nothing overflows, and both tails keep their relative precision.
	u := math.Exp(-math.Abs(margin))
	if math.IsInf(delta, 1) {
		loss = math.Log1p(u)
		// Separate branches for the two linear parts: inf - inf would be NaN.
		if margin > 0 {
			if labelSmoothing != 0 {
				loss += labelSmoothing * margin
			}
			return loss, labelSmoothing - u/(1+u)
		}
		return loss - (1-labelSmoothing)*margin, labelSmoothing - 1/(1+u)
	}
	over := margin - delta // how far the margin exceeds its ceiling
	v := math.Exp(-math.Abs(over))
	loss = math.Log1p(u) + math.Log1p(v) + labelSmoothing*delta
	if margin > 0 {
		grad = -u / (1 + u)
	} else {
		loss -= margin
		grad = -1 / (1 + u)
	}
	if over > 0 {
		loss += over
		grad += 1 / (1 + v)
	} else {
		grad += v / (1 + v)
	}
	return loss, grad
}

// RewardOptions are the settings of [RewardLoss] and [TokenLoss]. The zero value means
// the mean, without label smoothing, centering or checks.
type RewardOptions struct {
	Reduction Reduction

	// LabelSmoothing is the weight e of the swapped pair, 0 <= e < 0.5.
	LabelSmoothing float64

	// CenterRewardsCoefficient c >= 0 adds c (r_w + r_l)^2 to the loss of a pair, which
	// pulls the mean of the scores towards zero (the TRL option of the same name;
	// arXiv 2312.09244, equation 2).
	CenterRewardsCoefficient float64

	// CheckFinite makes a NaN or infinite score an error. Otherwise such scores
	// propagate to the loss and the gradient, as in torch.
	CheckFinite bool
}

// Validate returns an [*ArgumentError] that names the first option that is out of range.
func (o RewardOptions) Validate() error {
	switch {
	case o.Reduction < Mean || o.Reduction > None:
		return argErr("reduction", -1, "must be Mean, Sum or None, got %d", int(o.Reduction))
	case !(o.LabelSmoothing >= 0 && o.LabelSmoothing < 0.5):
		return argErr("label_smoothing", -1, "must be in [0, 0.5), got %v", o.LabelSmoothing)
	case !(o.CenterRewardsCoefficient >= 0) || math.IsInf(o.CenterRewardsCoefficient, 1):
		return argErr("center_rewards_coefficient", -1, "must be at least 0 and finite, got %v", o.CenterRewardsCoefficient)
	}
	return nil
}

// settings returns the settings of the kernel for a batch whose mean is over n losses.
func (o RewardOptions) settings(n int) settings {
	s := settings{scale: 1, smoothing: o.LabelSmoothing, center: o.CenterRewardsCoefficient, checkFinite: o.CheckFinite}
	if o.Reduction == Mean {
		s.scale = 1 / float64(n)
	}
	return s
}

// RewardLoss computes the loss of a batch of pairs and its gradient with respect to both
// scores in one pass:
//
//	for i := range chosen {
//		loss, g := PairLoss(chosen[i]-rejected[i], delta[i], e)
//		sum := chosen[i] + rejected[i]
//		losses[i] = loss + c*sum*sum
//		gradChosen[i] = (g + 2*c*sum) * scale
//		gradRejected[i] = (-g + 2*c*sum) * scale
//	}
//
// Here scale is 1/len(chosen) for [Mean] and 1 otherwise. RewardLoss returns the mean
// of the losses for [Mean] and their sum otherwise. delta holds the constraint of each
// pair; finite and infinite values may be mixed.
//
// losses is required for [None] and may otherwise be nil. Both gradients may be nil if
// none is needed. NaN scores give NaN.
//
// Errors, each an [*ArgumentError]: an empty batch; slices of different lengths; a
// delta that is not greater than 0 (the message names its index and value); an option
// out of range; with CheckFinite, a score that is NaN or infinite. After an error the
// contents of the destinations are undefined.
func RewardLoss[F Float](losses, gradChosen, gradRejected, chosen, rejected, delta []F, o RewardOptions) (float64, error) {
	n := len(chosen)
	if err := o.Validate(); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, argErr("chosen_rewards", -1, "must have at least one score, got none")
	}
	if err := checkLengths("chosen_rewards", n,
		sliceLength{"rejected_rewards", len(rejected), true},
		sliceLength{"delta", len(delta), true},
	); err != nil {
		return 0, err
	}
	if err := checkDestinations("chosen_rewards", n, o.Reduction, losses, gradChosen, gradRejected, nil, nil); err != nil {
		return 0, err
	}
	j := takeJob[F]()
	defer j.release()
	j.losses, j.gradChosen, j.gradRejected = losses, gradChosen, gradRejected
	j.chosen, j.rejected, j.delta = chosen, rejected, delta
	j.settings = o.settings(n)
	if total, ok := j.run((n+blockPairs-1)/blockPairs, n); ok {
		return total * j.scale, nil
	}
	for i, d := range delta {
		if err := argument.Positive("delta", i, d); err != nil {
			return 0, err
		}
		if err := checkScores(chosen[i:i+1], rejected[i:i+1], i, o.CheckFinite); err != nil {
			return 0, err
		}
	}
	return 0, errChanged
}

// errChanged is returned if a kernel rejected the arguments, but a second look finds no fault.
var errChanged = argErr("delta and scores", -1, "must not change during the call")

// checkScores returns an error for the first score that is not finite. Indices count from first.
func checkScores[F Float](chosen, rejected []F, first int, wanted bool) error {
	for i := range chosen {
		if wanted && notFinite(float64(chosen[i])) {
			return argErr("chosen_rewards", first+i, "must be finite, got %v", chosen[i])
		}
		if wanted && notFinite(float64(rejected[i])) {
			return argErr("rejected_rewards", first+i, "must be finite, got %v", rejected[i])
		}
	}
	return nil
}

type sliceLength struct {
	name  string
	len   int
	given bool
}

// checkLengths returns an error for the first of the given slices that does not have n
// elements, like the named slice.
func checkLengths(name string, n int, slices ...sliceLength) error {
	for _, s := range slices {
		if s.given && s.len != n {
			return argErr(s.name, -1, "must have %d elements, like %s, got %d", n, name, s.len)
		}
	}
	return nil
}

// checkDestinations returns an error for the first destination that does not have n elements,
// like the named slice. The losses are required for None, and each gradient with the other.
func checkDestinations[F Float](name string, n int, r Reduction, losses, gradChosen, gradRejected, chosenRewards, rejectedRewards []F) error {
	gradient := gradChosen != nil || gradRejected != nil
	return checkLengths(name, n,
		sliceLength{"losses", len(losses), losses != nil || r == None},
		sliceLength{"gradChosen", len(gradChosen), gradient},
		sliceLength{"gradRejected", len(gradRejected), gradient},
		sliceLength{"chosenRewards", len(chosenRewards), chosenRewards != nil},
		sliceLength{"rejectedRewards", len(rejectedRewards), rejectedRewards != nil},
	)
}
