package bridge

import (
	"encoding/json"

	"github.com/pcrm-project/pcrm/pcrm/stats"
)

// Spearman calls stats.Spearman on n float64 points.
func Spearman(n int64, x, y uintptr) (r float64, err error) {
	defer convert(&err)
	return stats.Spearman(slice[float64](x, n), slice[float64](y, n))
}

// KendallTauB calls stats.KendallTauB on n float64 points.
func KendallTauB(n int64, x, y uintptr) (tau float64, err error) {
	defer convert(&err)
	return stats.KendallTauB(slice[float64](x, n), slice[float64](y, n))
}

// Quantiles calls stats.Quantiles on n float64. dst and p have k float64 each.
func Quantiles(n, k int64, dst, x, p uintptr) (ok bool, err error) {
	defer convert(&err)
	err = stats.Quantiles(slice[float64](dst, k), slice[float64](x, n), slice[float64](p, k))
	return err == nil, err
}

// Histogram calls stats.Histogram on n float64. dst has bins int64.
func Histogram(n, bins int64, dst, x uintptr, low, high float64) (ok bool, err error) {
	defer convert(&err)
	err = stats.Histogram(slice[int64](dst, bins), slice[float64](x, n), low, high)
	return err == nil, err
}

// Reliability calls stats.Reliability on n float64, or stats.ReliabilityByLoss if delta is not 0.
// It writes the counts, the confidences, the accuracies and the ends of their intervals to the
// 50 float64 at dst.
func Reliability(n int64, dst, margins, delta uintptr) (ok bool, err error) {
	defer convert(&err)
	const k = stats.ReliabilityBins
	d := slice[float64](dst, 5*k)
	bins := stats.Reliability(slice[float64](margins, n))
	if delta != 0 {
		bins = stats.ReliabilityByLoss(slice[float64](margins, n), slice[float64](delta, n))
	}
	for i, b := range bins {
		d[i], d[k+i], d[2*k+i], d[3*k+i], d[4*k+i] = float64(b.Count), b.Confidence, b.Accuracy, b.Low, b.High
	}
	return true, nil
}

// CalibrationError calls stats.CalibrationError on n float64. It writes the value and the ends
// of its interval to the three float64 at dst.
func CalibrationError(n int64, dst, margins uintptr) (ok bool, err error) {
	defer convert(&err)
	d := slice[float64](dst, 3)
	d[0], d[1], d[2] = stats.CalibrationError(stats.Reliability(slice[float64](margins, n)))
	return true, nil
}

// Lowess calls stats.Lowess on n float64 points.
func Lowess(n int64, dst, x, y uintptr, frac float64, iterations int64, delta float64) (ok bool, err error) {
	defer convert(&err)
	o := stats.LowessOptions{Frac: frac, Iterations: int(iterations), Delta: delta}
	err = stats.Lowess(slice[float64](dst, n), slice[float64](x, n), slice[float64](y, n), o)
	return err == nil, err
}

// Calibrate calls stats.Calibrate on n float64 scores and features.
func Calibrate(n int64, dst, scores, feature uintptr, method string, alpha, frac float64, iterations int64, delta float64) (ok bool, err error) {
	defer convert(&err)
	lowess := stats.LowessOptions{Frac: frac, Iterations: int(iterations), Delta: delta}
	o := stats.CalibrateOptions{Method: method, Alpha: alpha, Lowess: lowess}
	err = stats.Calibrate(slice[float64](dst, n), slice[float64](scores, n), slice[float64](feature, n), o)
	return err == nil, err
}

// Calibrated calls stats.Calibrated on n float64 margins. The result has the format of Pairs.
func Calibrated(n int64, margins, calibrated uintptr) (estimates string, err error) {
	defer convert(&err)
	e, err := stats.Calibrated(slice[float64](margins, n), slice[float64](calibrated, n))
	return estimated(e, err)
}

// Pairs calls stats.Pairs on n float64. It returns a JSON object with the estimates by key, each
// a list of the value and the ends of its interval; an infinite end is null. difference and
// delta may be 0.
func Pairs(n int64, margins, difference, delta uintptr) (estimates string, err error) {
	defer convert(&err)
	e, err := stats.Pairs(slice[float64](margins, n), slice[float64](difference, n), slice[float64](delta, n))
	return estimated(e, err)
}

// Rankings calls stats.Rankings on the float64 points of several prompts. offsets has prompts+1
// int64; spearman and kendall have prompts float64 each. The result has the format of Pairs.
func Rankings(prompts, points int64, spearman, kendall, scores, ratings, offsets uintptr) (estimates string, err error) {
	defer convert(&err)
	e, err := stats.Rankings(slice[float64](spearman, prompts), slice[float64](kendall, prompts),
		slice[float64](scores, points), slice[float64](ratings, points), slice[int64](offsets, prompts+1))
	return estimated(e, err)
}

// Lengths calls stats.Lengths on the float64 points of several units. offsets has units+1 int64.
// The result has the format of Pairs.
func Lengths(units, points int64, scores, lengths, offsets uintptr) (estimates string, err error) {
	defer convert(&err)
	e, err := stats.Lengths(slice[float64](scores, points), slice[float64](lengths, points), slice[int64](offsets, units+1))
	return estimated(e, err)
}

// BestOfN calls stats.BestOfN on the float64 points of several pools and on k int64 counts.
// offsets has pools+1 int64. It returns a JSON list of objects with pools, the number of pools,
// and estimates in the format of Pairs.
func BestOfN(pools, points, k int64, scores, gold, offsets, counts uintptr) (estimates string, err error) {
	defer convert(&err)
	p, err := stats.BestOfN(slice[float64](scores, points), slice[float64](gold, points),
		slice[int64](offsets, pools+1), slice[int64](counts, k))
	return policies(p, err)
}

// SoftmaxPolicy calls stats.SoftmaxPolicy. The arguments are as in BestOfN, with k float64 coefficients.
func SoftmaxPolicy(pools, points, k int64, scores, gold, offsets, coefficients uintptr) (estimates string, err error) {
	defer convert(&err)
	p, err := stats.SoftmaxPolicy(slice[float64](scores, points), slice[float64](gold, points),
		slice[int64](offsets, pools+1), slice[float64](coefficients, k))
	return policies(p, err)
}

// Reference calls stats.Reference. The pools are as in BestOfN, and the result has the format of Pairs.
func Reference(pools, points int64, scores, gold, offsets uintptr) (estimates string, err error) {
	defer convert(&err)
	e, err := stats.Reference(slice[float64](scores, points), slice[float64](gold, points), slice[int64](offsets, pools+1))
	return estimated(e, err)
}

func estimated(estimates []stats.Estimate, err error) (string, error) {
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(byKey(estimates))
	return string(text), err
}

func policies(points []stats.Point, err error) (string, error) {
	if err != nil {
		return "", err
	}
	type point struct {
		Pools     int              `json:"pools"`
		Estimates map[string][]any `json:"estimates"`
	}
	all := make([]point, len(points))
	for i, p := range points {
		all[i] = point{p.Pools, byKey(p.Estimates)}
	}
	text, err := json.Marshal(all)
	return string(text), err
}

func byKey(estimates []stats.Estimate) map[string][]any {
	m := make(map[string][]any, len(estimates))
	for _, e := range estimates {
		m[e.Key] = []any{e.Value, finite(e.Low), finite(e.High)}
	}
	return m
}
