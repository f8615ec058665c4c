package pcrm

import (
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// DPOOptions are the settings of [DPOLoss]. Beta has no default; 0 is an error.
type DPOOptions struct {
	// Beta > 0 scales the log-probability ratios to rewards.
	Beta float64

	Reduction      Reduction
	LabelSmoothing float64 // the weight e of the swapped pair, 0 <= e < 0.5

	// CheckFinite makes a NaN or infinite log probability an error. Otherwise such values
	// propagate as in [PairLoss].
	CheckFinite bool
}

// DPOLoss computes the loss of a batch of pairs from the log probabilities of the two
// responses under a policy and its reference model. The loss is [PairLoss] of the difference
// of the implicit rewards (arXiv 2404.00978, section 3.3; arXiv 2305.18290):
//
//	for i := range policyChosen {
//		chosenRewards[i] = beta * (policyChosen[i] - referenceChosen[i])
//		rejectedRewards[i] = beta * (policyRejected[i] - referenceRejected[i])
//		losses[i], g = PairLoss(chosenRewards[i]-rejectedRewards[i], delta[i], e)
//		gradChosen[i] = beta * g * scale
//		gradRejected[i] = -beta * g * scale
//	}
//
// Here scale is 1/len(policyChosen) for [Mean] and 1 otherwise. DPOLoss returns the mean
// of the losses for [Mean] and their sum otherwise. The gradients are with respect to the
// policy's log probabilities. The reference and delta get no gradient, and none flows
// through the rewards.
//
// losses is required for [None] and may otherwise be nil. Both gradients may be nil, and
// so may each of the rewards. Everything is computed in float64, also for float32 inputs,
// because the margin is a small difference of large numbers.
//
// Errors, each an [*ArgumentError]: an empty batch; slices of different lengths; a
// delta that is not greater than 0; an option out of range; with CheckFinite, a log
// probability that is NaN or infinite. After an error the contents of the destinations
// are undefined.
func DPOLoss[F Float](losses, gradChosen, gradRejected, chosenRewards, rejectedRewards,
	policyChosen, policyRejected, referenceChosen, referenceRejected, delta []F, o DPOOptions) (float64, error) {
	n := len(policyChosen)
	ro := RewardOptions{Reduction: o.Reduction, LabelSmoothing: o.LabelSmoothing}
	if err := ro.Validate(); err != nil {
		return 0, err
	}
	if !(o.Beta > 0) || math.IsInf(o.Beta, 1) {
		return 0, argErr("beta", -1, "must be greater than 0 and finite, got %v", o.Beta)
	}
	if n == 0 {
		return 0, argErr("policy_chosen_logps", -1, "must have at least one log probability, got none")
	}
	if err := checkLengths("policy_chosen_logps", n,
		sliceLength{"policy_rejected_logps", len(policyRejected), true},
		sliceLength{"reference_chosen_logps", len(referenceChosen), true},
		sliceLength{"reference_rejected_logps", len(referenceRejected), true},
		sliceLength{"delta", len(delta), true},
	); err != nil {
		return 0, err
	}
	if err := checkDestinations("policy_chosen_logps", n, o.Reduction, losses, gradChosen, gradRejected, chosenRewards, rejectedRewards); err != nil {
		return 0, err
	}
	if o.CheckFinite {
		for i := range n {
			for _, s := range [...]struct {
				name  string
				value F
			}{
				{"policy_chosen_logps", policyChosen[i]},
				{"policy_rejected_logps", policyRejected[i]},
				{"reference_chosen_logps", referenceChosen[i]},
				{"reference_rejected_logps", referenceRejected[i]},
			} {
				if notFinite(float64(s.value)) {
					return 0, argErr(s.name, i, "must be finite, got %v", s.value)
				}
			}
		}
	}
	j := takeJob[F]()
	defer j.release()
	j.form = dpoForm
	j.losses, j.gradChosen, j.gradRejected = losses, gradChosen, gradRejected
	j.chosenRewards, j.rejectedRewards = chosenRewards, rejectedRewards
	j.chosen, j.rejected, j.delta = policyChosen, policyRejected, delta
	j.referenceChosen, j.referenceRejected, j.beta = referenceChosen, referenceRejected, o.Beta
	j.settings = ro.settings(n)
	if total, ok := j.run((n+dpoPairs-1)/dpoPairs, n); ok {
		return total * j.scale, nil
	}
	for i, d := range delta {
		if err := argument.Positive("delta", i, d); err != nil {
			return 0, err
		}
	}
	return 0, errChanged
}

// dpoPairs is the block size of the DPO form. Its batches are small, and clearing a larger
// buffer would take longer than computing such a batch.
const dpoPairs = 64

// dpo computes block b: rewards in float64, then the float64 kernel.
func (j *job[F]) dpo(b int) (float64, bool) {
	var lossBuffer, gradBuffer, negBuffer, chosen, rejected, delta [dpoPairs]float64
	from, to := b*dpoPairs, min((b+1)*dpoPairs, len(j.chosen))
	n := to - from
	for i := range n {
		at := from + i
		chosen[i] = j.beta * (float64(j.chosen[at]) - float64(j.referenceChosen[at]))
		rejected[i] = j.beta * (float64(j.rejected[at]) - float64(j.referenceRejected[at]))
		delta[i] = float64(j.delta[at])
	}
	var losses, grad, neg []float64
	if j.losses != nil {
		losses = lossBuffer[:n]
	}
	if j.gradChosen != nil {
		grad, neg = gradBuffer[:n], negBuffer[:n]
	}
	// delta[:n] has one element only if the block has one pair.
	sum, ok := rewardBlock(losses, grad, neg, chosen[:n], rejected[:n], delta[:n], j.settings)
	put(part(j.losses, from, to), losses, 1)
	put(part(j.gradChosen, from, to), grad, j.beta)
	put(part(j.gradRejected, from, to), neg, j.beta)
	put(part(j.chosenRewards, from, to), chosen[:], 1)
	put(part(j.rejectedRewards, from, to), rejected[:], 1)
	return sum, ok
}

// put writes the scaled, rounded elements of src to dst, as many as dst has.
func put[F Float](dst []F, src []float64, scale float64) {
	for i := range dst {
		dst[i] = F(src[i] * scale)
	}
}
