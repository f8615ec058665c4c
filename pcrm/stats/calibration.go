package stats

import (
	"math"

	"gonum.org/v1/gonum/floats"

	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
)

// Accuracy returns the fraction of margins that are greater than 0, or NaN if there are none.
func Accuracy(margins []float64) float64 {
	n := 0
	for _, m := range margins {
		if m > 0 {
			n++
		}
	}
	return float64(n) / float64(len(margins))
}

// Brier returns the mean of (P - 1)^2 with P = sigmoid(m). A margin of 0 contributes 0.25, a
// large positive margin 0, and a large negative margin 1. Brier of no margins is NaN.
func Brier(margins []float64) float64 {
	sum := 0.0
	for _, m := range margins {
		sum += brier(m)
	}
	return sum / float64(len(margins))
}

func brier(m float64) float64 {
	q := numeric.Sigmoid(-m) // 1 - P, without cancellation
	return q * q
}

// NLL returns the mean of -log P with P = sigmoid(m), in nats. A margin of 0 contributes log 2,
// a large positive margin 0, and a large negative margin about -m. NLL of no margins is NaN.
func NLL(margins []float64) float64 {
	sum := 0.0
	for _, m := range margins {
		sum += nll(m)
	}
	return sum / float64(len(margins))
}

// nll returns log(1 + exp(-m)) without overflow.
func nll(m float64) float64 {
	return max(-m, 0) + math.Log1p(math.Exp(-math.Abs(m)))
}

// ReliabilityBins is the number of equal bins of [0.5, 1].
const ReliabilityBins = 10

// A Bin is one bin of a reliability diagram.
type Bin struct {
	Count      int
	Confidence float64 // the mean of max(P, 1-P)
	Accuracy   float64 // the fraction of pairs whose margin is greater than 0
	Low, High  float64 // Wilson's 95% interval of the accuracy
}

// Reliability groups margins by the confidence max(P, 1-P) into [ReliabilityBins] equal
// bins of [0.5, 1]. All bins except the last are open on the right. The numbers of a bin
// without pairs are NaN.
func Reliability(margins []float64) [ReliabilityBins]Bin {
	var sums binSums
	for _, m := range margins {
		confidence := numeric.Sigmoid(math.Abs(m))
		sums.add(binOf(confidence), confidence, m > 0)
	}
	return sums.bins()
}

// ReliabilityByLoss is [Reliability] with pcrm.WinProbability(m, delta), the probability that
// the constrained loss assigns to a margin, instead of sigmoid(m). The two slices must have the
// same length.
func ReliabilityByLoss(margins, delta []float64) [ReliabilityBins]Bin {
	var sums binSums
	for i, m := range margins {
		confidence := numeric.WinProbability(math.Abs(m), delta[i])
		sums.add(binOf(confidence), confidence, m > 0)
	}
	return sums.bins()
}

// ECE returns the expected calibration error of a reliability diagram,
//
//	sum over the bins of |accuracy - confidence| count / n
//
// in [0, 1], or NaN if there are no pairs. This is the plug-in estimate, which the noise of each
// bin's accuracy biases upward: by about 0.4/sqrt(n/10) for a calibrated model if all bins hold
// the same number of pairs. [CalibrationError] corrects this bias.
func ECE(bins [ReliabilityBins]Bin) float64 {
	total, gap := 0, 0.0
	for _, b := range bins {
		if b.Count > 0 {
			total += b.Count
			gap += math.Abs(b.Accuracy-b.Confidence) * float64(b.Count)
		}
	}
	return gap / float64(total)
}

func binOf(confidence float64) uint8 {
	return uint8(min((confidence-0.5)*2*ReliabilityBins, ReliabilityBins-1))
}

type binSums struct {
	count, correct [ReliabilityBins]int
	confidence     [ReliabilityBins]float64
}

func (s *binSums) add(bin uint8, confidence float64, correct bool) {
	s.count[bin]++
	s.confidence[bin] += confidence
	if correct {
		s.correct[bin]++
	}
}

func (s *binSums) bins() (bins [ReliabilityBins]Bin) {
	for i := range bins {
		n := float64(s.count[i])
		accuracy := float64(s.correct[i]) / n
		low, high := wilson(accuracy, n)
		bins[i] = Bin{s.count[i], s.confidence[i] / n, accuracy, low, high}
	}
	return bins
}

// wilson returns Wilson's 95% interval of a fraction of n.
func wilson(share, n float64) (low, high float64) {
	z := math.Sqrt2 * math.Erfinv(Level)
	center := (share + z*z/(2*n)) / (1 + z*z/n)
	half := z / (1 + z*z/n) * math.Sqrt(share*(1-share)/n+z*z/(4*n*n))
	return max(center-half, 0), min(center+half, 1)
}

// Temperature returns the T > 0 that minimizes the mean of -log sigmoid(m/T). Dividing all
// scores by T calibrates the margins as well as a single number can. T > 1 means that the
// scores are too far apart, T < 1 that they are too close together.
//
// The mean is a convex function of a = 1/T, and its derivative -mean(m sigmoid(-a m)) has
// one zero.
//
// Special cases:
//
//	Temperature(no margins)                  = NaN
//	Temperature(margins whose mean is <= 0)  = +Inf
//	Temperature(margins that are all >= 0)   = 0, if at least one is greater than 0
func Temperature(margins []float64) float64 {
	return 1 / inverseTemperature(margins, firstGuess(margins))
}

// firstGuess returns a value of the magnitude of 1/T, whatever the magnitude of the margins.
// Even a search that only halves and doubles would find T from it.
func firstGuess(margins []float64) float64 {
	return 1 / max(floats.Norm(margins, math.Inf(1)), 0x1p-1022)
}

// inverseTemperature returns 1/T, starting from a guess greater than 0.
func inverseTemperature(margins []float64, guess float64) float64 {
	if len(margins) == 0 {
		return math.NaN()
	}
	if floats.Sum(margins) <= 0 {
		return 0
	}
	if floats.Min(margins) >= 0 {
		return math.Inf(1)
	}
	// Newton's method between a low with a negative derivative and a high with a positive
	// one. If a step leaves this interval, bisect it, or double if there is no high yet.
	low, high, a := 0.0, math.Inf(1), guess
	for range 200 { // 64 bisections exhaust float64; Newton's method needs about six steps
		var first, second float64
		for _, m := range margins {
			s := numeric.Sigmoid(-a * m)
			first -= m * s
			second += m * m * s * (1 - s)
		}
		switch {
		case first == 0:
			return a
		case first < 0:
			low = a
		default:
			high = a
		}
		next := a - first/second
		if !(next > low && next < high) {
			next = 2 * a
			if !math.IsInf(high, 1) {
				next = (low + high) / 2
			}
		}
		if math.Abs(next-a) <= 1e-14*a {
			return next
		}
		a = next
	}
	return a
}
