package stats

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
)

// A statistic computes numbers from a resample, given as the indices of units, and writes them
// to dst. It may keep memory between calls.
type statistic func(dst []float64, units []int32)

// bootstrapPoints is the greatest number of points of a resample. With this limit, a report
// on a million pairs takes seconds.
const bootstrapPoints = 5_000

// Parameters of the bootstrap.
const (
	// Level is the confidence level of all intervals.
	Level = 0.95
	// With this many resamples, the ends of a 95% interval vary by about 3% of its width.
	resamples = 1000
	seed      = 0x7063726d // arbitrary; the same rows always give the same report
)

// bootstrap returns the percentile intervals of statistics, given their values on the whole
// sample. It draws n units with replacement; each unit has points/n points on average.
//
// Above [bootstrapPoints] it draws only m < n units and scales the deviations from the value
// by sqrt(m/n), which is right for statistics that converge with the square root of n (the m
// out of n bootstrap of Bickel, Götze and van Zwet, Statistica Sinica 7, 1997).
//
// Resamples in which a statistic is NaN are ignored for that statistic. If it is NaN in all of
// them, the interval is infinite.
func bootstrap(values []float64, n, points int, newStatistic func() statistic) (low, high []float64) {
	low, high = make([]float64, len(values)), make([]float64, len(values))
	m := n
	if points > bootstrapPoints {
		m = max(1, min(n, int(float64(bootstrapPoints)/float64(points)*float64(n))))
	}
	draws := make([]float64, resamples*len(values)) // ordered by statistic
	parallel.Rows(resamples, resamples/16, func(from, to int) {
		compute := newStatistic()
		units, numbers := make([]int32, m), make([]float64, len(values))
		for b := from; b < to; b++ {
			// A generator per resample, so that the draws do not depend on the number of threads.
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
