package stats

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/floats"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// A Point describes a policy that is optimized against a proxy reward, averaged over pools.
// Pool i is a sample of responses of a reference policy to prompt i. Each response has the
// score of the proxy and a gold value, which is not optimized. The estimates are
//
//	kl           KL divergence of the policy from the reference, in nats
//	proxy, gold  expected values of a response of the policy
//	proxy_gain   proxy minus the mean of the pool, which is the value of the reference
//	gold_gain    gold minus the mean of the pool
//
// with intervals that resample pools. If proxy_gain grows and gold_gain does not, the policy
// improves only in the view of the proxy.
type Point struct {
	Pools     int // the number of pools that it averages
	Estimates []Estimate
}

// pointKeys are in the order of the columns that average takes.
var pointKeys = []string{"kl", "proxy", "gold", "proxy_gain", "gold_gain"}

// BestOfN describes, for each n of counts, the policy that draws n responses and keeps the
// one with the highest proxy score.
//
// For a pool of N responses, the expected values are exact over all subsets of n responses
// drawn without replacement. The response of rank i, where rank 1 is the lowest score, is the
// best of C(i-1, n-1) of the C(N, n) subsets, so
//
//	proxy = sum over i of C(i-1, n-1) / C(N, n) * scores[i]
//
// and likewise for gold. This is the unbiased estimator of best of n for the policy that
// the pool samples (Nakano et al., WebGPT, arXiv 2112.09332; Gao et al., arXiv 2210.10760).
// Responses with equal scores are equally likely to be kept.
//
//	kl = log n - (n-1)/n
//
// is the analytic value. It is exact for a policy whose scores have no ties, and an upper
// bound in general (Beirami et al., arXiv 2401.01879).
//
// Special cases: n = 1 is the reference, with a kl of 0. A pool of fewer than n responses
// has no best of n and is left out for this n. If pools differ in size, points may thus
// average different pools, but the gains always compare a policy with the reference on the
// same pools.
//
// Pool i has the points [offsets[i], offsets[i+1]) of scores and gold.
//
// Errors, each a *pcrm.ArgumentError: scores and gold of different lengths; offsets
// that do not run from 0 to len(scores) in order; an empty pool; a score or gold value that
// is not finite (scores[i][j] names element j of pool i); no counts; a count less than 1 or
// greater than the largest pool.
func BestOfN(scores, gold []float64, offsets, counts []int64) ([]Point, error) {
	p, err := newPools(scores, gold, offsets)
	if err != nil {
		return nil, err
	}
	if len(counts) == 0 {
		return nil, argument.Errorf("counts", -1, "must have at least one number, got none")
	}
	for i, n := range counts {
		if n < 1 || n > int64(p.largest) {
			return nil, argument.Errorf("counts", i, "must be from 1 to %d, the size of the largest pool, got %d", p.largest, n)
		}
	}
	// The order of the scores is the same for all counts.
	order := make([]int, len(scores))
	for i := range p.len() {
		part := order[offsets[i]:offsets[i+1]]
		floats.Argsort(slices.Clone(p.scores(i)), part)
	}
	return p.points(len(counts), func(k, i int, weights []float64) float64 {
		n := int(counts[k])
		bestOfN(weights, p.scores(i), order[offsets[i]:offsets[i+1]], n)
		return math.Log(float64(n)) - float64(n-1)/float64(n)
	}, func(k, i int) bool { return p.size(i) >= int(counts[k]) }), nil
}

// bestOfN writes the probability that each response is the best of n. order sorts the
// scores.
func bestOfN(weights, scores []float64, order []int, n int) {
	size := len(scores)
	// From the highest rank down, C(i-2, n-1) / C(i-1, n-1) = (i-n) / (i-1). No factor
	// exceeds 1, so nothing overflows however large the binomials are.
	weight := float64(n) / float64(size)
	for i := size; i > 0; {
		j, sum := i, 0.0
		for ; j > 0 && scores[order[j-1]] == scores[order[i-1]]; j-- {
			sum += weight
			if j > 1 {
				weight *= float64(max(j-n, 0)) / float64(j-1)
			}
		}
		for k := j; k < i; k++ {
			weights[order[k]] = sum / float64(i-j)
		}
		i = j
	}
}

// SoftmaxPolicy describes the optimum of reinforcement learning with a KL penalty, among all
// policies on a pool. For each b of coefficients, the weight of the penalty, it is the p that
// maximizes
//
//	E_p[score] - b KL(p || uniform)
//
// With N responses,
//
//	p(y) = exp(score(y) / b) / sum over y' of exp(score(y') / b)
//	kl   = sum over y of p(y) log(N p(y))
//
// and proxy and gold are the expected values under p, exact on the pool. The uniform
// distribution on the pool represents the reference policy, so kl is at most log N. The
// scale of the scores matters: doubling the scores has the same effect as halving b.
//
// Special cases: b = 0 is the limit, which picks the response with the highest score, or
// each of several such responses with equal probability, and has a kl of log(N / their
// number). b = +Inf is the reference, with a kl of 0. Scores are shifted by their maximum, so
// nothing overflows. The absolute error of kl is about 1e-16 (1 + log N), and kl is never
// negative.
//
// Errors, each a *pcrm.ArgumentError: those of [BestOfN] for scores, gold and offsets; no
// coefficients; a coefficient that is negative or NaN.
func SoftmaxPolicy(scores, gold []float64, offsets []int64, coefficients []float64) ([]Point, error) {
	p, err := newPools(scores, gold, offsets)
	if err != nil {
		return nil, err
	}
	if len(coefficients) == 0 {
		return nil, argument.Errorf("coefficients", -1, "must have at least one number, got none")
	}
	for i, b := range coefficients {
		if !(b >= 0) {
			return nil, argument.Errorf("coefficients", i, "must be at least 0, got %v", b)
		}
	}
	return p.points(len(coefficients), func(k, i int, weights []float64) float64 {
		return softmax(weights, p.scores(i), coefficients[k])
	}, func(int, int) bool { return true }), nil
}

// softmax writes the probabilities of the policy and returns its KL divergence from the
// uniform distribution.
func softmax(weights, scores []float64, b float64) (kl float64) {
	highest := floats.Max(scores)
	logit := func(score float64) float64 {
		if score == highest {
			return 0 // also for b = 0
		}
		return (score - highest) / b
	}
	total := 0.0
	for j, score := range scores {
		weights[j] = math.Exp(logit(score))
		total += weights[j]
	}
	for j, score := range scores {
		weights[j] /= total
		if weights[j] > 0 { // 0 log 0 is 0
			kl += weights[j] * logit(score)
		}
	}
	return max(0, kl-math.Log(total/float64(len(scores))))
}

// Reference describes the policy that the pools sample:
//
//	proxy/mean, gold/mean  mean over pools of the pool's mean
//	proxy/sd, gold/sd      standard deviation within pools; its square is the sum over all values
//	                       of (value - mean of its pool)^2, divided by the number of values
//	                       minus the number of pools
//
// The standard deviation excludes the variance between prompts, because a policy cannot
// exploit it. It is not defined if all pools have a single response. Intervals resample
// pools.
//
// Errors: those of [BestOfN] for scores, gold and offsets.
func Reference(scores, gold []float64, offsets []int64) ([]Estimate, error) {
	p, err := newPools(scores, gold, offsets)
	if err != nil {
		return nil, err
	}
	type moments struct{ mean, squares [2]float64 }
	of := make([]moments, p.len())
	for i := range of {
		for k, values := range [][]float64{p.scores(i), p.gold(i)} {
			mean, sd := meanSD(values)
			of[i].mean[k], of[i].squares[k] = mean, sd*sd*float64(len(values))
		}
	}
	newStatistic := func() statistic {
		return func(dst []float64, units []int32) {
			var sum moments
			values := 0
			for _, u := range units {
				values += p.size(int(u))
				for k := range 2 {
					sum.mean[k] += of[u].mean[k]
					sum.squares[k] += of[u].squares[k]
				}
			}
			for k := range 2 {
				dst[2*k] = sum.mean[k] / float64(len(units))
				dst[2*k+1] = math.Sqrt(sum.squares[k] / float64(values-len(units))) // NaN where both are 0
			}
		}
	}
	keys := []string{"proxy/mean", "proxy/sd", "gold/mean", "gold/sd"}
	values, low, high := onSample(len(keys), p.len(), p.len(), newStatistic)
	return estimates(keys, values, low, high), nil
}

// pools holds the scores and gold values of prompts.
type pools struct {
	allScores, allGold []float64
	offsets            []int64
	largest            int
}

func newPools(scores, gold []float64, offsets []int64) (*pools, error) {
	if len(scores) != len(gold) {
		return nil, argument.Errorf("gold", -1, "must have %d elements, like scores, got %d", len(scores), len(gold))
	}
	if err := checkOffsets(offsets, len(scores)); err != nil {
		return nil, err
	}
	p := &pools{allScores: scores, allGold: gold, offsets: offsets}
	for i := range p.len() {
		if p.size(i) == 0 {
			return nil, argument.Errorf("scores", i, "must have at least one number, got none")
		}
		p.largest = max(p.largest, p.size(i))
		if err := checkFinite(fmt.Sprintf("scores[%d]", i), p.scores(i)); err != nil {
			return nil, err
		}
		if err := checkFinite(fmt.Sprintf("gold[%d]", i), p.gold(i)); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *pools) len() int               { return len(p.offsets) - 1 }
func (p *pools) size(i int) int         { return int(p.offsets[i+1] - p.offsets[i]) }
func (p *pools) scores(i int) []float64 { return p.allScores[p.offsets[i]:p.offsets[i+1]] }
func (p *pools) gold(i int) []float64   { return p.allGold[p.offsets[i]:p.offsets[i+1]] }

// points averages policies over pools. weigh writes the probabilities of the responses of pool i
// under policy k and returns the KL divergence. has reports whether policy k exists for pool i.
func (p *pools) points(policies int, weigh func(k, i int, weights []float64) float64, has func(k, i int) bool) []Point {
	width := len(pointKeys)
	ofPool := make([]float64, p.len()*width) // the values of one policy, pool by pool
	weights := make([]float64, p.largest)
	points := make([]Point, policies)
	for k := range points {
		counted := 0
		for i := range p.len() {
			if !has(k, i) {
				continue
			}
			w, scores, gold := weights[:p.size(i)], p.scores(i), p.gold(i)
			kl := weigh(k, i, w)
			proxy, golden := floats.Dot(w, scores), floats.Dot(w, gold)
			meanScore, _ := meanSD(scores)
			meanGold, _ := meanSD(gold)
			copy(ofPool[counted*width:], []float64{kl, proxy, golden, proxy - meanScore, golden - meanGold})
			counted++
		}
		newStatistic := func() statistic {
			return func(dst []float64, units []int32) {
				clear(dst)
				for _, u := range units {
					floats.Add(dst, ofPool[int(u)*width:int(u+1)*width])
				}
				floats.Scale(1/float64(len(units)), dst)
			}
		}
		values, low, high := onSample(width, counted, counted, newStatistic)
		points[k] = Point{counted, estimates(pointKeys, values, low, high)}
	}
	return points
}
