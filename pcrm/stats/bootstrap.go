package stats

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
)

// A statistic computes numbers from a resample, the indices of units, into dst. It may
// use memory of its own from call to call.
type statistic func(dst []float64, units []int32)

// bootstrapPoints is how many points a resample has at most. It is what lets a
// report on a million pairs take seconds.
const bootstrapPoints = 5_000

// Resampling of a bootstrap.
const (
	// Level is the share of the time that an interval holds the true value.
	Level = 0.95
	// resamples make the ends of a 95% interval certain to about 3% of its width.
	resamples = 1000
	seed      = 0x7063726d // any number; a report on the same rows is the same report
)

// bootstrap returns the percentile intervals of statistics whose values on the whole
// sample are given. n units are drawn with replacement, each of points/n points.
//
// Above [bootstrapPoints] only m < n units are drawn, and the deviations from the
// value made smaller by sqrt(m/n), as that of statistics that converge with the
// square root of n is (the m out of n bootstrap of Bickel, Götze and van Zwet,
// Statistica Sinica 7, 1997).
//
// A resample where a statistic is NaN does not count for it; where all are, the ends
// are infinite.
func bootstrap(values []float64, n, points int, newStatistic func() statistic) (low, high []float64) {
	low, high = make([]float64, len(values)), make([]float64, len(values))
	m := n
	if points > bootstrapPoints {
		m = max(1, min(n, int(float64(bootstrapPoints)/float64(points)*float64(n))))
	}
	draws := make([]float64, resamples*len(values)) // statistic by statistic
	parallel.Rows(resamples, resamples/16, func(from, to int) {
		compute := newStatistic()
		units, numbers := make([]int32, m), make([]float64, len(values))
		for b := from; b < to; b++ {
			// A generator each, so that the draws do not depend on the threads.
			random := rand.New(rand.NewPCG(seed, uint64(b)))
			for i := range units {
				units[i] = int32(random.Uint32N(uint32(n)))
			}
			compute(numbers, units)
			for j, v := range numbers {
				draws[j*resamples+b] = v
			}
		}
	})
	shrink := math.Sqrt(float64(m) / float64(n))
	for j, value := range values {
		d := slices.DeleteFunc(draws[j*resamples:(j+1)*resamples:(j+1)*resamples], math.IsNaN)
		if len(d) == 0 {
			low[j], high[j] = math.Inf(-1), math.Inf(1)
			continue
		}
		slices.Sort(d)
		low[j] = value + shrink*(numeric.Quantile(d, (1-Level)/2)-value)
		high[j] = value + shrink*(numeric.Quantile(d, (1+Level)/2)-value)
	}
	return low, high
}
