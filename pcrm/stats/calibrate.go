package stats

import (
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
)

// The methods of [Calibrate].
const (
	MethodLowess  = "lowess"
	MethodUniform = "uniform"
	MethodPenalty = "penalty"
)

// CalibrateOptions are the settings of [Calibrate].
type CalibrateOptions struct {
	// Method selects b: [MethodLowess], [MethodUniform] or [MethodPenalty].
	Method string
	// Alpha is the fraction of b that is subtracted. For a penalty, it is the cost of one
	// unit of the feature.
	Alpha float64
	// Lowess holds the settings of the curve. Frac also applies to the uniform window.
	Lowess LowessOptions
}

// Calibrate subtracts from the scores the part that a feature of each response, such as its
// length, predicts, and writes the result to dst:
//
//	dst_i = scores_i - alpha b(feature_i)
//
//	lowess    b is the curve of Lowess through all points (feature, score)
//	uniform   b is the mean of the scores whose feature is at most h from feature_i, where
//	          h is the distance of the k-th nearest point, counting i itself, and k = frac n;
//	          all points at distance h are included
//	penalty   b(f) = f
//
// k is rounded down and is at least 2 if there are 2 points. dst may be scores.
// (Huang, Qiu, Wang, Ponti and Titov, Post-hoc Reward Calibration, arXiv 2409.17407.
// Their uniform average uses a window of constant width. Here, as in the curve, each
// window has the same number of points, so no response is alone in its window.)
//
// Special cases: if all features are equal, b is the mean of the scores for lowess and
// uniform. The slices may be empty.
//
// Errors, each a *pcrm.ArgumentError: slices of different lengths; a number that is
// not finite; an unknown method; an option out of range.
func Calibrate(dst, scores, feature []float64, o CalibrateOptions) error {
	if len(dst) != len(scores) {
		return argument.Errorf("dst", -1, "must have %d elements, like scores, got %d", len(scores), len(dst))
	}
	if err := checkPaired("scores", scores, "feature", feature); err != nil {
		return err
	}
	if math.IsNaN(o.Alpha) || math.IsInf(o.Alpha, 0) {
		return argument.Errorf("alpha", -1, "must be finite, got %v", o.Alpha)
	}
	if err := o.Lowess.check(); err != nil {
		return err
	}
	bias := feature
	switch o.Method {
	case MethodLowess, MethodUniform:
		bias = make([]float64, len(scores))
		if len(scores) == 0 {
			return nil
		}
		if o.Method == MethodUniform {
			o.Lowess.Delta = 0 // a window for each point
		}
		s := newSmoother(feature, scores, o.Lowess)
		if o.Method == MethodLowess {
			s.run(bias, o.Lowess.Iterations)
		} else {
			s.average(bias)
		}
	case MethodPenalty:
	default:
		return argument.Errorf("method", -1, "must be %s, %s or %s, got %q", MethodLowess, MethodUniform, MethodPenalty, o.Method)
	}
	for i, score := range scores {
		dst[i] = score - o.Alpha*bias[i]
	}
	return nil
}

// average writes the mean of y in the window of each point. A window contains either all
// points of a group or none.
func (s *smoother) average(dst []float64) {
	s.sum()
	// Prefix sums over the groups, of y minus its mean, so that their differences keep
	// full precision.
	n := float64(len(s.y))
	mean := 0.0
	for _, wy := range s.wy {
		mean += wy / n
	}
	sums := make([]float64, len(s.x)+1)
	for g, wy := range s.wy {
		sums[g+1] = sums[g] + (wy - s.w[g]*mean)
	}
	for _, v := range s.fits {
		x := s.x[v.group]
		from, to := int(s.group[v.left]), int(s.group[v.right-1])+1
		// The next group on the right may be exactly as far as the farthest group in the
		// window, which is then on the left: windows move only towards nearer groups.
		if to < len(s.x) && s.x[to]-x <= v.radius {
			to++
		}
		count := s.start[to] - s.start[from]
		s.fit[v.group] = mean + (sums[to]-sums[from])/float64(count)
	}
	for at, i := range s.order {
		dst[i] = s.fit[s.group[at]]
	}
}

// Calibrated compares the margins of n pairs with their margins after a calibration:
//
//	accuracy_calibrated   fraction of calibrated margins greater than 0
//	flip_rate             fraction of pairs whose two margins differ in sign (-1, 0 or 1)
//	nll_calibrated        NLL of the calibrated margins
//	brier_calibrated      Brier of the calibrated margins
//	ece_calibrated        CalibrationError of the calibrated margins, with its own interval
//
// The other intervals resample pairs.
//
// Errors, each a *pcrm.ArgumentError: no margins; slices of different lengths; a number
// that is not finite.
func Calibrated(margins, calibrated []float64) ([]Estimate, error) {
	if len(margins) == 0 {
		return nil, argument.Errorf("margins", -1, "must have at least one number, got none")
	}
	if err := checkPaired("margins", margins, "calibrated", calibrated); err != nil {
		return nil, err
	}
	lost, squared := make([]float64, len(calibrated)), make([]float64, len(calibrated))
	for i, m := range calibrated {
		lost[i], squared[i] = nll(m), brier(m)
	}
	newStatistic := func() statistic {
		return func(dst []float64, units []int32) {
			var right, flipped int
			var nll, brier float64
			for _, i := range units {
				nll += lost[i]
				brier += squared[i]
				if calibrated[i] > 0 {
					right++
				}
				if sign(margins[i]) != sign(calibrated[i]) {
					flipped++
				}
			}
			n := float64(len(units))
			dst[0], dst[1], dst[2], dst[3] = float64(right)/n, float64(flipped)/n, nll/n, brier/n
		}
	}
	keys := []string{"accuracy_calibrated", "flip_rate", "nll_calibrated", "brier_calibrated"}
	values, low, high := onSample(len(keys), len(margins), len(margins), newStatistic)
	ece := Estimate{Key: "ece_calibrated"}
	ece.Value, ece.Low, ece.High = CalibrationError(Reliability(calibrated))
	return append(estimates(keys, values, low, high), ece), nil
}

func sign(x float64) int {
	switch {
	case x > 0:
		return 1
	case x < 0:
		return -1
	}
	return 0
}
