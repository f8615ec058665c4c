package stats

import "math"

// CalibrationError estimates the true expected calibration error of the model, with a 95%
// interval, from a sample on which [ECE] is the observed value. All results are in [0, 1], or
// NaN if there are no pairs.
//
// ECE is biased upward, because the noise of each bin's accuracy counts as a gap. A
// bootstrap adds that noise a second time, so its intervals miss the true value. This
// estimate and its interval invert a test instead. Let d_b be the true gaps between accuracy
// and confidence. The true error is the weighted sum of |d_b|, and ECE is distributed as
//
//	sum over the bins of n_b/n |d_b + z_b|,  z_b normal with variance p_b (1 - p_b) / n_b
//
// with p_b the accuracy. The estimate is the true error for which the median of ECE is the
// observed value. It is 0 if the median is larger even for a calibrated model. The ends of
// the interval are the true errors for which the observed ECE is the 97.5% and the 2.5%
// quantile.
//
// A true error does not determine the individual gaps. For the estimate they are proportional
// to the observed gaps. For the low end only gaps above two standard errors count, because the
// other bins then add the most noise. For the high end all gaps are one standard error larger,
// because noise then adds the least. docs/report.md gives the coverage in a simulation.
func CalibrationError(bins [ReliabilityBins]Bin) (value, low, high float64) {
	observed := ECE(bins)
	if math.IsNaN(observed) {
		return observed, observed, observed
	}
	g := newGaps(bins)
	value = g.invert(observed, 0.5, func(gap, _ float64) float64 { return gap })
	low = g.invert(observed, (1+Level)/2, func(gap, se float64) float64 {
		if math.Abs(gap) < 2*se {
			return 0
		}
		return gap
	})
	high = g.invert(observed, (1-Level)/2, func(gap, se float64) float64 { return gap + math.Copysign(se, gap) })
	return value, min(low, value), max(high, value)
}

// gap is the observed difference between a bin's accuracy and confidence.
type gap struct {
	weight, count, confidence float64
	observed, se              float64
}

type gaps []gap

// newGaps omits bins without pairs. It computes accuracies with one more correct and one more
// wrong pair, so that a bin with only correct pairs still has a standard error.
func newGaps(bins [ReliabilityBins]Bin) gaps {
	total := 0
	for _, b := range bins {
		total += b.Count
	}
	var g gaps
	for _, b := range bins {
		if b.Count == 0 {
			continue
		}
		n := float64(b.Count)
		p := (n*b.Accuracy + 1) / (n + 2)
		variance := max(p*(1-p), b.Confidence*(1-b.Confidence))
		g = append(g, gap{n / float64(total), n, b.Confidence, p - b.Confidence, math.Sqrt(variance / n)})
	}
	return g
}

// invert returns the true error for which a quantile of ECE is the observed value. The gaps
// are proportional to the shape of the observed ones.
func (g gaps) invert(observed, level float64, shape func(gap, se float64) float64) float64 {
	direction := make([]float64, len(g))
	largest, clearest := 0.0, 0
	for i, b := range g {
		direction[i] = shape(b.observed, b.se)
		largest = max(largest, math.Abs(direction[i]))
		if math.Abs(b.observed)/b.se > math.Abs(g[clearest].observed)/g[clearest].se {
			clearest = i
		}
	}
	if largest == 0 { // use only the most significant gap
		direction[clearest], largest = math.Copysign(1, g[clearest].observed), 1
	}
	for i := range direction {
		direction[i] /= largest
	}
	z := math.Sqrt2 * math.Erfinv(2*level-1)
	within := func(scale float64) bool {
		_, quantile := g.at(scale, direction, z)
		return quantile <= observed
	}
	if !within(0) {
		return 0
	}
	from, to := 0.0, 1.0
	for range 40 { // by then, if no scale is enough, all bins have an accuracy of 0 or 1
		if !within(to) {
			break
		}
		from, to = to, 2*to
	}
	for range 60 {
		if middle := (from + to) / 2; within(middle) {
			from = middle
		} else {
			to = middle
		}
	}
	total, _ := g.at(from, direction, z)
	return total
}

// at returns the true error for gaps of scale times a direction, and the corresponding quantile
// of ECE with normal score z, computed from the first three moments (Cornish and Fisher).
func (g gaps) at(scale float64, direction []float64, z float64) (total, quantile float64) {
	var mean, variance, third float64
	for i, b := range g {
		p := min(max(b.confidence+scale*direction[i], 0), 1)
		d := math.Abs(p - b.confidence)
		m, v, t := folded(d, math.Sqrt(p*(1-p)/b.count))
		total += b.weight * d
		mean += b.weight * m
		variance += b.weight * b.weight * v
		third += b.weight * b.weight * b.weight * t
	}
	if variance <= 0 {
		return total, mean
	}
	sd := math.Sqrt(variance)
	return total, mean + sd*(z+(z*z-1)*third/(variance*sd)/6)
}

// folded returns the mean, the variance and the third central moment of |d + sd Z|, Z
// standard normal and d at least 0.
func folded(d, sd float64) (mean, variance, third float64) {
	if sd == 0 {
		return d, 0, 0
	}
	x := d / sd
	density, inside := math.Sqrt(2/math.Pi)*math.Exp(-x*x/2), math.Erf(x/math.Sqrt2)
	mean = sd*density + d*inside
	square := d*d + sd*sd
	cube := (d*d+2*sd*sd)*sd*density + (d*d*d+3*d*sd*sd)*inside
	return mean, max(square-mean*mean, 0), cube - 3*mean*square + 2*mean*mean*mean
}
