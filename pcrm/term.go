package pcrm

import "math"

// Term is a loss of one pair by its margin m and a number x of its own, which other
// papers put in the place of [PairLoss]. It is here so that they can be compared in one
// engine: all that is round the term is the same.
type Term int

const (
	// OffsetTerm is -log sigmoid(m - x), the Bradley-Terry loss of a margin that has to
	// be greater by x: the margin of Llama 2 (arXiv 2307.09288, equation 2), the offset of
	// ODPO (arXiv 2402.10571) and, with x = -alpha (|y_w| - |y_l|) for lengths in tokens,
	// R-DPO (arXiv 2403.19159).
	OffsetTerm Term = iota

	// SquaredTerm is (m - x)^2: IPO (arXiv 2310.12036, equation 17) with x = 1/(2 tau) and
	// the plain difference of log ratios as m; RPO with its squared distance, where x is
	// eta times the gap of the gold rewards.
	SquaredTerm

	// ForwardKLTerm is KL(sigmoid(m) || sigmoid(x)), the divergence of two coins: RPO with
	// the distance that NeMo-Aligner calls forward KL. It is not convex in m.
	ForwardKLTerm

	// BackwardKLTerm is KL(sigmoid(x) || sigmoid(m)): RPO as it was used (arXiv 2406.11704,
	// section 3.3.2), the cross entropy with a soft label less the label's entropy.
	BackwardKLTerm
)

// Loss returns the term and its derivative by the margin.
//
//	OffsetTerm      log(1 + exp(x-m))                        -sigmoid(x-m)
//	SquaredTerm     (m-x)^2                                  2 (m-x)
//	ForwardKLTerm   q log(q/p) + (1-q) log((1-q)/(1-p))      q (1-q) (m-x)
//	BackwardKLTerm  p log(p/q) + (1-p) log((1-p)/(1-q))      q - p
//
// with q = sigmoid(m) and p = sigmoid(x). It checks nothing: x is meant to be finite.
//
// Special cases, for finite x:
//
//	any term of NaN            = NaN, NaN
//	OffsetTerm.Loss(+Inf, x)   = 0, 0
//	OffsetTerm.Loss(-Inf, x)   = +Inf, -1
//	SquaredTerm.Loss(±Inf, x)  = +Inf, ±Inf
//	ForwardKLTerm.Loss(±Inf, x)  = -log sigmoid(±x), 0
//	BackwardKLTerm.Loss(+Inf, x) = +Inf, 1-p
//	BackwardKLTerm.Loss(-Inf, x) = +Inf, -p
//
// where the last two are 0, 0 if x has their sign and is beyond 745: in float64 its coin
// then has but one side. The divergence of nearly equal coins is a small difference of
// larger numbers, so that it may come out some 2^-53 under 0.
func (t Term) Loss(margin, x float64) (loss, grad float64) {
	switch t {
	case SquaredTerm:
		d := margin - x
		return d * d, 2 * d
	case ForwardKLTerm:
		u := math.Exp(-math.Abs(margin))
		if u != 0 { // else 0*inf would be NaN
			grad = u / ((1 + u) * (1 + u)) * (margin - x)
		}
		return coinDivergence(margin, x), grad
	case BackwardKLTerm:
		if x > 0 { // of the two small ones, which keep their digits
			return coinDivergence(x, margin), sigmoid(-x) - sigmoid(-margin)
		}
		return coinDivergence(x, margin), sigmoid(margin) - sigmoid(x)
	}
	return PairLoss(margin-x, math.Inf(1), 0)
}

func sigmoid(x float64) float64 {
	u := math.Exp(-math.Abs(x))
	if x > 0 {
		return 1 / (1 + u)
	}
	return u / (1 + u)
}

// coinDivergence is KL(sigmoid(a) || sigmoid(b)) of two coins, as the distance of softplus
// at b from its tangent at a: softplus(b) - softplus(a) - sigmoid(a) (b-a).
func coinDivergence(a, b float64) float64 {
	if a > 0 { // the other side of both coins: sigmoid(a) is at most 1/2, and precise
		a, b = -a, -b
	}
	u := math.Exp(a)
	p := u / (1 + u)
	kl := math.Log1p(math.Exp(-math.Abs(b))) - math.Log1p(u)
	// softplus(b) - p b has (1-p) b or -p b beside its logarithm.
	if b > 0 {
		kl += (1 - p) * b
		b = 0
	}
	if p != 0 { // 0*inf would be NaN
		kl += p * (a - b)
	}
	return kl
}

// TermOptions are the settings of [TermLoss]. Beta and OffsetScale have no default: 0 is
// an error for the first and leaves the offsets out for the second.
type TermOptions struct {
	Term Term

	// Beta scales scores, or log probability ratios, to what the margin is the difference
	// of, Beta > 0: 1 for a reward model and for IPO.
	Beta float64

	// RewardBeta scales log probability ratios to the implicit rewards that are returned,
	// which the loss does not depend on.
	RewardBeta float64

	// OffsetScale multiplies the offsets: eta of RPO, -alpha of R-DPO, else 1. Finite.
	OffsetScale float64

	// L2 adds c (r_w^2 + r_l^2) to the loss of a pair, c >= 0, of the numbers that the
	// margin is the difference of.
	L2 float64

	Reduction Reduction
}

// Validate returns an [*ArgumentError] that names the first option out of its range.
func (o TermOptions) Validate() error {
	switch {
	case o.Term < OffsetTerm || o.Term > BackwardKLTerm:
		return argErr("term", -1, "is %d, must be OffsetTerm, SquaredTerm, ForwardKLTerm or BackwardKLTerm", int(o.Term))
	case !(o.Beta > 0) || math.IsInf(o.Beta, 1):
		return argErr("beta", -1, "is %v, must be greater than 0 and finite", o.Beta)
	case notFinite(o.RewardBeta):
		return argErr("reward beta", -1, "is %v, must be finite", o.RewardBeta)
	case notFinite(o.OffsetScale):
		return argErr("offset scale", -1, "is %v, must be finite", o.OffsetScale)
	case !(o.L2 >= 0) || math.IsInf(o.L2, 1):
		return argErr("coefficient", -1, "is %v, must be at least 0 and finite", o.L2)
	}
	return RewardOptions{Reduction: o.Reduction}.Validate()
}

// TermLoss is a [Term] of a batch of pairs and its gradient by both scores, in one pass:
//
//	for i := range chosen {
//		w := chosen[i] - referenceChosen[i]
//		l := rejected[i] - referenceRejected[i]
//		chosenRewards[i], rejectedRewards[i] = rewardBeta*w, rewardBeta*l
//		w, l = beta*w, beta*l
//		loss, g := term.Loss(w-l, offsetScale*offset[i])
//		losses[i] = loss + c*(w*w+l*l)
//		gradChosen[i] = beta * (g + 2*c*w) * scale
//		gradRejected[i] = beta * (-g + 2*c*l) * scale
//	}
//
// where scale is 1/len(chosen) for [Mean] and 1 otherwise. It returns the mean of the
// losses for [Mean], else their sum. chosen and rejected are the scores of a reward model,
// without references, or the log probabilities of a policy, with those of its reference.
//
// losses is needed for [None] only and may otherwise be nil; both references may be nil,
// both gradients, and each of the rewards. All is computed in float64 for float32 too. An
// [OffsetTerm] without offset has the bits of [DPOLoss] with delta = +Inf.
//
// Errors, each an [*ArgumentError]: an empty batch; slices of different lengths; an offset
// that is NaN or infinite, or becomes so when it is scaled (its index and value are named);
// options out of range. What the destinations hold after an error is undefined. NaN scores
// give NaN.
func TermLoss[F Float](losses, gradChosen, gradRejected, chosenRewards, rejectedRewards,
	chosen, rejected, referenceChosen, referenceRejected, offset []F, o TermOptions) (float64, error) {
	n := len(chosen)
	if err := o.Validate(); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, argErr("chosen", -1, "is empty, must be at least one score")
	}
	references := referenceChosen != nil || referenceRejected != nil
	if err := checkLengths("chosen", n,
		sliceLength{"rejected", len(rejected), true},
		sliceLength{"referenceChosen", len(referenceChosen), references},
		sliceLength{"referenceRejected", len(referenceRejected), references},
		sliceLength{"offset", len(offset), true},
	); err != nil {
		return 0, err
	}
	if err := checkDestinations("chosen", n, o.Reduction, losses, gradChosen, gradRejected, chosenRewards, rejectedRewards); err != nil {
		return 0, err
	}
	j := takeJob[F]()
	defer j.release()
	j.form = termForm
	j.losses, j.gradChosen, j.gradRejected = losses, gradChosen, gradRejected
	j.chosenRewards, j.rejectedRewards = chosenRewards, rejectedRewards
	j.chosen, j.rejected, j.delta = chosen, rejected, offset
	j.referenceChosen, j.referenceRejected = referenceChosen, referenceRejected
	j.termOptions, j.settings = o, RewardOptions{Reduction: o.Reduction}.settings(n)
	work := n
	if o.Term > SquaredTerm {
		work *= 8 // no SIMD: see parallelPairs
	}
	if total, ok := j.run((n+dpoPairs-1)/dpoPairs, work); ok {
		return total * j.scale, nil
	}
	for i, x := range offset {
		if notFinite(o.OffsetScale * float64(x)) {
			return 0, argErr("offset", i, "is %v, must be finite", x)
		}
	}
	return 0, errChanged
}

var unconstrained = []float64{math.Inf(1)}

// terms does block b in float64.
func (j *job[F]) terms(b int) (sum float64, ok bool) {
	var chosen, rejected, offset, losses, grad, neg [dpoPairs]float64
	from, to := b*dpoPairs, min((b+1)*dpoPairs, len(j.chosen))
	n := to - from
	o := j.termOptions
	for i := range n {
		at := from + i
		w, l := float64(j.chosen[at]), float64(j.rejected[at])
		if j.referenceChosen != nil {
			w, l = w-float64(j.referenceChosen[at]), l-float64(j.referenceRejected[at])
		}
		if j.chosenRewards != nil {
			j.chosenRewards[at] = F(o.RewardBeta * w)
		}
		if j.rejectedRewards != nil {
			j.rejectedRewards[at] = F(o.RewardBeta * l)
		}
		chosen[i], rejected[i], offset[i] = o.Beta*w, o.Beta*l, o.OffsetScale*float64(j.delta[at])
		if notFinite(offset[i]) {
			return 0, false
		}
	}
	if o.Term == OffsetTerm {
		// The pair loss, by the kernel that is there for it.
		var shifted [dpoPairs]float64
		for i := range n {
			shifted[i] = chosen[i] - offset[i]
		}
		sum, _ = rewardBlock(losses[:n], grad[:n], neg[:n], shifted[:n], rejected[:n], unconstrained, settings{scale: j.scale})
	} else {
		for i := range n {
			losses[i], grad[i] = o.Term.Loss(chosen[i]-rejected[i], offset[i])
			grad[i] *= j.scale
			neg[i] = -grad[i]
			sum += losses[i]
		}
	}
	if o.L2 != 0 { // 0*inf would be NaN
		for i := range n {
			w, l := chosen[i], rejected[i]
			losses[i] += o.L2 * (w*w + l*l)
			sum += o.L2 * (w*w + l*l)
			grad[i] += 2 * o.L2 * w * j.scale
			neg[i] += 2 * o.L2 * l * j.scale
		}
	}
	put(part(j.losses, from, to), losses[:], 1)
	put(part(j.gradChosen, from, to), grad[:], o.Beta)
	put(part(j.gradRejected, from, to), neg[:], o.Beta)
	return sum, true
}
