package stats

import (
	"fmt"
	"math"
	"slices"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
)

// An Estimate is a number with its 95% interval. The interval is from the bootstrap unless
// documented otherwise.
type Estimate struct {
	// Key is the name in summary.json. A slash separates nested objects: "margin/mean".
	Key       string
	Value     float64
	Low, High float64 // may be infinite; both are if the error is unknown
}

// MarginQuantiles are the quantiles of the margins that [Pairs] returns.
var MarginQuantiles = []float64{0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99}

// Pairs describes the margins of a model on n pairs:
//
//	accuracy                         fraction of m > 0
//	accuracy_longer_chosen           accuracy on pairs whose chosen response is longer
//	accuracy_shorter_chosen          accuracy on pairs whose chosen response is shorter
//	margin/mean, sd, quantiles/0.5   of m; the standard deviation divides by n
//	margin/share_over_5, _10         fraction of m > 5 and of m > 10
//	ece                              see CalibrationError, which has its own interval
//	ece_plugin                       see ECE; its interval is infinite
//	nll, brier, temperature          see NLL, Brier, Temperature
//	spearman_margin_length_difference  Spearman's correlation of m with the length of chosen
//	                                 minus the length of rejected
//	residual/mean, sd                of m - delta/2
//	violation_rate                   fraction of m > delta
//	nll_by_loss, brier_by_loss, ece_by_loss  nll, brier and ece with pcrm.WinProbability(m, delta),
//	                                 the probability under the loss, instead of sigmoid(m)
//	ruled_out_by_loss                fraction of m <= -delta/2, for which this probability is 0
//	                                 and the NLL infinite
//
// If all deltas are infinite, the probability under the loss is sigmoid(m), and the last four
// are omitted.
//
// difference, the difference of the lengths, and delta may be nil. Statistics that need them
// are then omitted, and so are statistics that are NaN or infinite. Intervals resample pairs.
//
// Errors, each a *pcrm.ArgumentError: no margins; slices of different lengths; a number
// that is not finite; a delta that is not greater than 0 (it may be +Inf).
func Pairs(margins, difference, delta []float64) ([]Estimate, error) {
	if len(margins) == 0 {
		return nil, argument.Errorf("margins", -1, "must have at least one number, got none")
	}
	if difference == nil {
		if err := checkPaired("margins", margins, "margins", margins); err != nil {
			return nil, err
		}
	} else if err := checkPaired("margins", margins, "difference", difference); err != nil {
		return nil, err
	}
	if delta != nil && len(delta) != len(margins) {
		return nil, argument.Errorf("delta", -1, "must have %d elements, like margins, got %d", len(margins), len(delta))
	}
	for i, d := range delta {
		if err := argument.Positive("delta", i, d); err != nil {
			return nil, err
		}
	}
	keys := slices.Clone(pairKeys)
	for _, q := range MarginQuantiles {
		keys = append(keys, fmt.Sprintf("margin/quantiles/%g", q))
	}
	keys = append(keys, "spearman_margin_length_difference")
	p := newPairs(margins, difference, delta)
	values, low, high := onSample(len(keys), len(margins), len(margins), p.statistic)
	bins := Reliability(margins)
	ece := Estimate{Key: "ece"}
	ece.Value, ece.Low, ece.High = CalibrationError(bins)
	plugIn := Estimate{Key: "ece_plugin", Value: ECE(bins), Low: math.Inf(-1), High: math.Inf(1)}
	found := append(estimates(keys, values, low, high), ece, plugIn)
	if p.isConstrained {
		ece = Estimate{Key: "ece_by_loss"}
		ece.Value, ece.Low, ece.High = CalibrationError(ReliabilityByLoss(margins, delta))
		found = append(found, ece)
	}
	return found, nil
}

// pairKeys are in the order in which statistic writes them. Quantiles and the correlation follow.
var pairKeys = []string{"accuracy", "accuracy_longer_chosen", "accuracy_shorter_chosen",
	"margin/mean", "margin/sd", "margin/share_over_5", "margin/share_over_10", "nll", "brier", "temperature",
	"residual/mean", "residual/sd", "violation_rate", "nll_by_loss", "brier_by_loss", "ruled_out_by_loss"}

// estimates omits values that are NaN or infinite.
func estimates(keys []string, values, low, high []float64) []Estimate {
	var e []Estimate
	for i, v := range values {
		if v-v == 0 {
			e = append(e, Estimate{keys[i], v, low[i], high[i]})
		}
	}
	return e
}

// pair holds all data of one pair that resamples need. Resamples read pairs in random order, so
// the data of a pair is contiguous to save cache misses.
type pair struct {
	margin, residual, nll, brier float64
	nllByLoss, brierByLoss       float64
	code, difference             uint32
	longer                       int8 // the sign of the difference of the lengths
	over                         bool // the margin is over delta
	ruledOut                     bool // the margin is under -delta/2
}

type pairs struct {
	pairs                                []pair
	hasDifference, hasDelta, hasResidual bool
	isConstrained                        bool    // a delta is finite
	inverseTemperature                   float64 // the initial guess for resamples
}

func newPairs(margins, difference, delta []float64) *pairs {
	p := &pairs{
		pairs:         make([]pair, len(margins)),
		hasDifference: difference != nil,
		hasDelta:      delta != nil,
		hasResidual:   delta != nil && !math.IsInf(slices.Max(delta), 1),
		isConstrained: delta != nil && !math.IsInf(slices.Min(delta), 1),
	}
	code := codes(margins)
	for i, m := range margins {
		p.pairs[i] = pair{margin: m, nll: nll(m), brier: brier(m), code: code[i]}
	}
	if p.hasDifference {
		code = codes(difference)
		for i, d := range difference {
			p.pairs[i].difference = code[i]
			switch {
			case d > 0:
				p.pairs[i].longer = 1
			case d < 0:
				p.pairs[i].longer = -1
			}
		}
	}
	for i, d := range delta {
		p.pairs[i].residual = margins[i] - d/2
		p.pairs[i].over = margins[i] > d
		against := numeric.WinProbability(-margins[i], d) // 1 - P, without cancellation
		p.pairs[i].nllByLoss, p.pairs[i].brierByLoss = numeric.WinNLL(margins[i], d), against*against
		p.pairs[i].ruledOut = math.IsInf(p.pairs[i].nllByLoss, 1)
	}
	p.inverseTemperature = inverseTemperature(margins, firstGuess(margins))
	if !(p.inverseTemperature > 0) || math.IsInf(p.inverseTemperature, 1) {
		p.inverseTemperature = 1
	}
	return p
}

func (p *pairs) statistic() statistic {
	var (
		r                        ranker
		margin, residual, sorted []float64
		code, difference         []uint32
	)
	return func(dst []float64, units []int32) {
		n := len(units)
		margin, residual, sorted = resize(margin, n), resize(residual, n), resize(sorted, n)
		code, difference = resize(code, n), resize(difference, n)
		var right, over5, over10, over, ruledOut int
		var ofSign, rightOfSign [3]int // by the sign of the difference + 1
		var nll, brier, nllByLoss, brierByLoss float64
		for j, i := range units {
			v := &p.pairs[i]
			margin[j], residual[j], code[j], difference[j] = v.margin, v.residual, v.code, v.difference
			correct := v.margin > 0
			nll += v.nll
			brier += v.brier
			nllByLoss += v.nllByLoss
			brierByLoss += v.brierByLoss
			ofSign[v.longer+1]++
			if correct {
				right++
				rightOfSign[v.longer+1]++
			}
			if v.margin > 5 {
				over5++
			}
			if v.margin > 10 {
				over10++
			}
			if v.over {
				over++
			}
			if v.ruledOut {
				ruledOut++
			}
		}
		at := 0
		put := func(values ...float64) { at += copy(dst[at:], values) }
		share := func(count, of int) float64 { return float64(count) / float64(of) }
		if put(share(right, n)); p.hasDifference {
			put(share(rightOfSign[2], ofSign[2]), share(rightOfSign[0], ofSign[0]))
		} else {
			put(math.NaN(), math.NaN())
		}
		put(meanSD(margin))
		put(share(over5, n), share(over10, n), nll/float64(n), brier/float64(n))
		put(1 / inverseTemperature(margin, p.inverseTemperature))
		if p.hasResidual {
			put(meanSD(residual))
		} else {
			put(math.NaN(), math.NaN())
		}
		if p.hasDelta {
			put(share(over, n))
		} else {
			put(math.NaN())
		}
		if p.isConstrained {
			put(nllByLoss/float64(n), brierByLoss/float64(n), share(ruledOut, n))
		} else {
			put(math.NaN(), math.NaN(), math.NaN())
		}
		x := r.sorted(code)
		for j, k := range x {
			sorted[j] = margin[k.at]
		}
		for _, q := range MarginQuantiles {
			put(numeric.Quantile(sorted, q))
		}
		if p.hasDifference {
			put(r.spearman(code, difference))
		} else {
			put(math.NaN())
		}
	}
}

// Rankings compares how scores and ratings rank the responses of each prompt. Prompt i has the
// points [offsets[i], offsets[i+1]) of scores and ratings.
//
//	spearman_rating               mean over prompts of Spearman's correlation
//	kendall_tau_b_rating          mean over prompts of Kendall's tau-b
//	pooled_spearman_rating        Spearman's correlation of all points at once
//	pooled_kendall_tau_b_rating   Kendall's tau-b of all points at once
//
// The correlations of each prompt are written to spearman and kendall. They are NaN for
// prompts with fewer than two responses, with equal scores only, or with equal ratings only.
// The means ignore these prompts. Intervals resample prompts.
//
// Errors, each a *pcrm.ArgumentError: slices of different lengths; offsets that do not
// run from 0 to len(scores) in order; a number that is not finite.
func Rankings(spearman, kendall, scores, ratings []float64, offsets []int64) ([]Estimate, error) {
	if err := checkPaired("scores", scores, "ratings", ratings); err != nil {
		return nil, err
	}
	if err := checkOffsets(offsets, len(scores)); err != nil {
		return nil, err
	}
	prompts := len(offsets) - 1
	for _, dst := range [][]float64{spearman, kendall} {
		if len(dst) != prompts {
			return nil, argument.Errorf("dst", -1, "must have %d elements, one per prompt, got %d", prompts, len(dst))
		}
	}
	x, y := codes(scores), codes(ratings)
	var r ranker
	for i := range prompts {
		from, to := offsets[i], offsets[i+1]
		spearman[i], kendall[i] = r.spearman(x[from:to], y[from:to]), r.kendall(x[from:to], y[from:to])
	}
	keys := []string{"spearman_rating", "kendall_tau_b_rating", "pooled_spearman_rating", "pooled_kendall_tau_b_rating"}
	newStatistic := func() statistic {
		pooled := newPooled(x, y, offsets)
		return func(dst []float64, units []int32) {
			dst[0], dst[1] = meanDefined(spearman, units), meanDefined(kendall, units)
			pooled.gather(units)
			dst[2], dst[3] = pooled.spearman(), pooled.kendall()
		}
	}
	values, low, high := onSample(len(keys), prompts, len(scores), newStatistic)
	return estimates(keys, values, low, high), nil
}

// Lengths describes the relation between scores and the lengths of the responses:
//
//	spearman_score_length   Spearman's correlation of all points
//
// Unit i, a pair or a prompt, has the points [offsets[i], offsets[i+1]). Intervals resample
// units.
//
// Errors: those of [Rankings].
func Lengths(scores, lengths []float64, offsets []int64) ([]Estimate, error) {
	if err := checkPaired("scores", scores, "lengths", lengths); err != nil {
		return nil, err
	}
	if err := checkOffsets(offsets, len(scores)); err != nil {
		return nil, err
	}
	x, y := codes(scores), codes(lengths)
	newStatistic := func() statistic {
		pooled := newPooled(x, y, offsets)
		return func(dst []float64, units []int32) {
			pooled.gather(units)
			dst[0] = pooled.spearman()
		}
	}
	values, low, high := onSample(1, len(offsets)-1, len(scores), newStatistic)
	return estimates([]string{"spearman_score_length"}, values, low, high), nil
}

// onSample computes statistics on the whole sample, with their intervals.
func onSample(count, n, points int, newStatistic func() statistic) (values, low, high []float64) {
	values = make([]float64, count)
	all := make([]int32, n)
	for i := range all {
		all[i] = int32(i)
	}
	newStatistic()(values, all)
	low, high = bootstrap(values, n, points, newStatistic)
	return values, low, high
}

func checkOffsets(offsets []int64, n int) error {
	if len(offsets) < 2 || offsets[0] != 0 || offsets[len(offsets)-1] != int64(n) || !slices.IsSorted(offsets) {
		return argument.Errorf("offsets", -1, "must run from 0 to %d in order, with at least one unit", n)
	}
	return nil
}

// meanDefined returns the mean of the elements that are not NaN.
func meanDefined(x []float64, units []int32) float64 {
	sum, n := 0.0, 0
	for _, i := range units {
		if v := x[i]; v == v {
			sum += v
			n++
		}
	}
	return sum / float64(n)
}

// pooled holds the combined points of several units.
type pooled struct {
	ranker
	allX, allY []uint32
	offsets    []int64
	px, py     []uint32
}

func newPooled(x, y []uint32, offsets []int64) *pooled {
	return &pooled{allX: x, allY: y, offsets: offsets}
}

func (p *pooled) gather(units []int32) {
	p.px, p.py = p.px[:0], p.py[:0]
	for _, u := range units {
		from, to := p.offsets[u], p.offsets[u+1]
		p.px = append(p.px, p.allX[from:to]...)
		p.py = append(p.py, p.allY[from:to]...)
	}
}

func (p *pooled) spearman() float64 { return p.ranker.spearman(p.px, p.py) }
func (p *pooled) kendall() float64  { return p.ranker.kendall(p.px, p.py) }
