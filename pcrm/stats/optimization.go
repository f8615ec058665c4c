package stats

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/floats"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// A Point is what a policy that was optimized against a proxy gets on average over
// pools: pool i is a sample of responses of a reference policy to prompt i, each with
// the score that the proxy gives it and the gold value that nobody optimized. The
// estimates are
//
//	kl           of the policy to the reference, in nats
//	proxy, gold  the expected values of a response of the policy
//	proxy_gain   proxy less the mean of the pool, which is what the reference gets
//	gold_gain    the same of gold
//
// with intervals that resample pools. Where the proxy's gain grows and the gold one
// does not, the policy gets better only by the proxy's own account.
type Point struct {
	Pools     int // how many pools it is the mean of
	Estimates []Estimate
}

// pointKeys are in the order of the columns that average takes.
var pointKeys = []string{"kl", "proxy", "gold", "proxy_gain", "gold_gain"}

// BestOfN is the policy that draws n responses and keeps the one that the proxy scores
// highest, for each n of counts.
//
// Of a pool of N responses its expected values are exact, over all subsets of n drawn
// without replacement: the response of rank i, from 1 for the lowest score, is the best
// of C(i-1, n-1) of the C(N, n) subsets, so that
//
//	proxy = sum over i of C(i-1, n-1) / C(N, n) * scores[i]
//
// and likewise gold. It is the unbiased estimator of what best of n gets of the policy
// that the pool is a sample of (Nakano et al., WebGPT, arXiv 2112.09332; Gao et al.,
// arXiv 2210.10760). Equal scores share equally: the best of a subset is any of them
// with the same probability.
//
//	kl = log n - (n-1)/n
//
// is the analytic value. It holds for a policy whose scores have no ties and is an
// upper bound of what best of n has in general (Beirami et al., arXiv 2401.01879).
//
// Special cases: n = 1 is the reference, with a kl of 0. A pool of fewer than n
// responses has no best of n and does not count at this n: where pools differ in size,
// points then are means of different pools, but their gains always compare a policy
// with the reference on the same ones.
//
// Pool i has the points [offsets[i], offsets[i+1]) of scores and gold.
//
// Errors, each an [*pcrm.ArgumentError]: scores and gold of different lengths, offsets
// that are not 0 to len(scores) in order, a pool that is empty, a score that is not
// finite, which scores[i][j] names by its pool and its place there, and likewise gold;
// no counts, a count less than 1 or greater than the largest pool.
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

// bestOfN writes the probability of each response to be the best of n. order sorts the
// scores.
func bestOfN(weights, scores []float64, order []int, n int) {
	size := len(scores)
	// From the highest rank down, C(i-2, n-1) / C(i-1, n-1) = (i-n) / (i-1): no factor
	// exceeds 1, so that nothing overflows however large the binomials are.
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

// SoftmaxPolicy is the optimum of reinforcement learning with a penalty on the KL
// divergence, among the policies on a pool: of all p it has the highest
//
//	E_p[score] - b KL(p || uniform)
//
// for each b of coefficients, the weight of the penalty. With N responses
//
//	p(y) = exp(score(y) / b) / sum over y' of exp(score(y') / b)
//	kl   = sum over y of p(y) log(N p(y))
//
// and proxy and gold are its expected values, exact on the pool. The uniform
// distribution on the pool stands for the reference policy, so kl is at most log N; the
// scale of the scores matters, and doubling them is halving b.
//
// Special cases: b = 0 is the limit, the highest score's response, or each of the equal
// ones in equal shares, with a kl of log(N / their number). b = +Inf is the reference,
// with a kl of 0. Scores are shifted by their maximum, so that none overflows. kl is
// right to about 1e-16 (1 + log N) in absolute terms, and never below 0.
//
// Errors are those of [BestOfN] for scores, gold and offsets; and no coefficients, one
// that is negative or NaN.
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

// softmax writes the probabilities of the policy and returns its KL divergence to the
// uniform one.
func softmax(weights, scores []float64, b float64) (kl float64) {
	highest := floats.Max(scores)
	logit := func(score float64) float64 {
		if score == highest {
			return 0 // for b = 0, too
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

// Reference describes the policy that pools are samples of:
//
//	proxy/mean, gold/mean  means over pools of the pool's mean
//	proxy/sd, gold/sd      of the values within a pool: the root of the sum over all pools of
//	                       (value - mean of its pool)^2, divided by the number of values less
//	                       that of pools
//
// The standard deviation leaves out what differs between prompts: an offset of a prompt
// is nothing that a policy could gain. It is not defined where all pools have a single
// response. Intervals resample pools. Errors are those of [BestOfN].
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

// pools are the scores and gold values of prompts.
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

// points averages policies over pools: weigh writes the probabilities that policy k
// gives the responses of pool i, and returns its KL divergence; has says whether pool i
// has a policy k.
func (p *pools) points(policies int, weigh func(k, i int, weights []float64) float64, has func(k, i int) bool) []Point {
	width := len(pointKeys)
	ofPool := make([]float64, p.len()*width) // of one policy, pool by pool
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
