package pcrm

import "math"

// Reduction says what becomes of the losses of a batch.
type Reduction int

const (
	Mean Reduction = iota // their mean; the gradient is that of the mean
	Sum                   // their sum; the gradient is that of the sum
	None                  // each is kept; the gradient of pair i is that of its own loss
)

// blockPairs is how many pairs are summed before their sum joins the total:
// 4096 float64 scores are 32 KiB, a first-level cache, and the error of a sum of
// n terms falls from n to 4096 + n/4096 roundings.
const blockPairs = 4096

// PairLoss returns the loss of one pair and its derivative by the margin.
//
//	finite delta:  L = softplus(-m) + softplus(m-delta) + e*delta
//	               g = sigmoid(m-delta) - sigmoid(-m)
//	delta = +Inf:  L = (1-e) softplus(-m) + e softplus(m)
//	               g = e - sigmoid(-m)
//
// e is the label smoothing (see the package documentation for why it moves no
// gradient where delta is finite). It checks nothing.
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
	// u/(1+u): no overflow, and both tails keep their relative precision.
	u := math.Exp(-math.Abs(margin))
	if math.IsInf(delta, 1) {
		loss = math.Log1p(u)
		// The two linear parts apart, as inf - inf would be NaN.
		if margin > 0 {
			if labelSmoothing != 0 {
				loss += labelSmoothing * margin
			}
			return loss, labelSmoothing - u/(1+u)
		}
		return loss - (1-labelSmoothing)*margin, labelSmoothing - 1/(1+u)
	}
	over := margin - delta // how far the margin is over its ceiling
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

// RewardOptions are the settings of [RewardLoss]. The zero value is the mean of
// the plain losses.
type RewardOptions struct {
	Reduction Reduction

	// LabelSmoothing is the weight e of the swapped pair, 0 <= e < 0.5.
	LabelSmoothing float64

	// CenterRewardsCoefficient adds c (r_w + r_l)^2 to the loss of a pair, c >= 0,
	// which pulls the scores towards mean zero (TRL's option of that name;
	// arXiv 2312.09244, equation 2).
	CenterRewardsCoefficient float64

	// CheckFinite refuses a NaN or infinite score. Without it they propagate to
	// the loss and the gradient, as they do in torch.
	CheckFinite bool
}

func (o RewardOptions) validate() error {
	switch {
	case o.Reduction < Mean || o.Reduction > None:
		return argErr("reduction", -1, "is %d, must be Mean, Sum or None", int(o.Reduction))
	case !(o.LabelSmoothing >= 0 && o.LabelSmoothing < 0.5):
		return argErr("label_smoothing", -1, "is %v, must be in [0, 0.5)", o.LabelSmoothing)
	case !(o.CenterRewardsCoefficient >= 0) || math.IsInf(o.CenterRewardsCoefficient, 1):
		return argErr("center_rewards_coefficient", -1, "is %v, must be at least 0 and finite", o.CenterRewardsCoefficient)
	}
	return nil
}

// RewardLoss is the loss of a batch of pairs and its gradient by both scores, in
// one pass:
//
//	for i := range chosen {
//		loss, g := PairLoss(chosen[i]-rejected[i], delta[i], e)
//		sum := chosen[i] + rejected[i]
//		losses[i] = loss + c*sum*sum
//		gradChosen[i] = (g + 2*c*sum) * scale
//		gradRejected[i] = (-g + 2*c*sum) * scale
//	}
//
// where scale is 1/len(chosen) for [Mean] and 1 otherwise. It returns the mean of
// the losses for [Mean], else their sum. delta is the constraint of each pair,
// finite and +Inf ones mixed as they come.
//
// losses is needed for [None] only and may otherwise be nil. Both gradients may be
// nil where none is wanted.
//
// Errors, each an [*ArgumentError]: an empty batch; slices of different lengths; a
// delta that is not greater than 0 (its index and value are named); options out of
// range; with CheckFinite a score that is NaN or infinite. What the destinations
// hold after an error is undefined. NaN scores give NaN.
func RewardLoss[F Float](losses, gradChosen, gradRejected, chosen, rejected, delta []F, o RewardOptions) (float64, error) {
	n := len(chosen)
	if err := o.validate(); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, argErr("chosen_rewards", -1, "are empty, must be at least one score")
	}
	for _, s := range []struct {
		name  string
		len   int
		given bool
	}{
		{"rejected_rewards", len(rejected), true},
		{"delta", len(delta), true},
		{"losses", len(losses), losses != nil || o.Reduction == None},
		{"gradChosen", len(gradChosen), gradChosen != nil || gradRejected != nil},
		{"gradRejected", len(gradRejected), gradRejected != nil || gradChosen != nil},
	} {
		if s.given && s.len != n {
			return 0, argErr(s.name, -1, "has %d elements, chosen_rewards has %d", s.len, n)
		}
	}
	scale := 1.0
	if o.Reduction == Mean {
		scale = 1 / float64(n)
	}
	center := o.CenterRewardsCoefficient
	total := 0.0
	for start := 0; start < n; start += blockPairs {
		block := 0.0
		for i := start; i < min(start+blockPairs, n); i++ {
			w, l, d := float64(chosen[i]), float64(rejected[i]), float64(delta[i])
			if !(d > 0) {
				return 0, argErr("delta", i, "is %v, must be greater than 0", d)
			}
			if o.CheckFinite {
				if err := checkFinite("chosen_rewards", i, w); err != nil {
					return 0, err
				}
				if err := checkFinite("rejected_rewards", i, l); err != nil {
					return 0, err
				}
			}
			loss, g := PairLoss(w-l, d, o.LabelSmoothing)
			pull := 0.0
			if center != 0 { // 0*inf would be NaN
				loss += center * (w + l) * (w + l)
				pull = 2 * center * (w + l)
			}
			block += loss
			if losses != nil {
				losses[i] = F(loss)
			}
			if gradChosen != nil {
				gradChosen[i] = F((g + pull) * scale)
				gradRejected[i] = F((pull - g) * scale)
			}
		}
		total += block
	}
	return total * scale, nil
}

func checkFinite(name string, i int, v float64) error {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return argErr(name, i, "is %v, must be finite", v)
	}
	return nil
}
