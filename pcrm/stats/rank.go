package stats

import (
	"math"

	"gonum.org/v1/gonum/floats"
)

// Spearman returns the rank correlation of x and y: Pearson's correlation of their ranks,
// where equal numbers get the mean of their ranks. It takes time O(n log n).
//
// Special cases: the result is NaN for fewer than two points, and if all x or all y are
// equal. -0 and 0 are equal.
//
// Errors, each a *pcrm.ArgumentError: slices of different lengths; an element that is
// not finite.
func Spearman(x, y []float64) (float64, error) {
	if err := checkPaired("x", x, "y", y); err != nil {
		return 0, err
	}
	var r ranker
	return r.spearman(codes(x), codes(y)), nil
}

// KendallTauB returns Kendall's tau-b of x and y,
//
//	(C - D) / sqrt((N - X) (N - Y))
//
// Of the N = n(n-1)/2 pairs of points, C have x and y in the same order and D in opposite
// order; X are equal in x and Y are equal in y. It takes time O(n log n), by counting the swaps
// of a merge sort (W. R. Knight, Journal of the American Statistical Association 61, 1966).
//
// Special cases and errors are those of [Spearman].
func KendallTauB(x, y []float64) (float64, error) {
	if err := checkPaired("x", x, "y", y); err != nil {
		return 0, err
	}
	var r ranker
	return r.kendall(codes(x), codes(y)), nil
}

// codes replaces each value of x by the index of the value among the sorted distinct values.
// Ranks depend only on these codes, and integers sort faster.
func codes(x []float64) []uint32 {
	dst := make([]uint32, len(x))
	order, tmp := make([]keyed, len(x)), make([]keyed, len(x))
	for i, v := range x {
		order[i] = keyed{orderedBits(v), uint32(i)}
	}
	sortKeyed(order, tmp)
	code := uint32(0)
	for i, e := range order {
		if i > 0 && e.key != order[i-1].key {
			code++
		}
		dst[e.at] = code
	}
	return dst
}

// orderedBits maps numbers to integers in the same order. Equal numbers map to equal integers.
func orderedBits(v float64) uint64 {
	b := math.Float64bits(v + 0) // -0 + 0 is 0
	if b>>63 == 1 {
		return ^b
	}
	return b | 1<<63
}

// ranker holds the memory for the correlations, so that a thousand of them allocate only once.
type ranker struct {
	keys, tmp []keyed
	x, y      []float64
	ys, tmpYs []uint32
}

func (r *ranker) spearman(x, y []uint32) float64 {
	if len(x) < 2 {
		return math.NaN()
	}
	r.x = r.ranks(r.x, x)
	r.y = r.ranks(r.y, y)
	// Centered ranks are multiples of 1/2. If all are equal, they are exactly 0.
	return clampCorrelation(floats.Dot(r.x, r.y) / math.Sqrt(floats.Dot(r.x, r.x)*floats.Dot(r.y, r.y)))
}

// ranks writes the ranks of codes minus their mean to dst, which it grows if necessary.
func (r *ranker) ranks(dst []float64, code []uint32) []float64 {
	dst = resize(dst, len(code))
	keys := r.sorted(code)
	for i := 0; i < len(keys); {
		j := i + 1
		for j < len(keys) && keys[j].key == keys[i].key {
			j++
		}
		mean := float64(i+j-len(keys)) / 2 // of the ranks i+1 ... j, minus the overall mean
		for _, k := range keys[i:j] {
			dst[k.at] = mean
		}
		i = j
	}
	return dst
}

// sorted returns the codes in order, each with its index.
func (r *ranker) sorted(code []uint32) []keyed {
	r.keys, r.tmp = resize(r.keys, len(code)), resize(r.tmp, len(code))
	for i, c := range code {
		r.keys[i] = keyed{uint64(c), uint32(i)}
	}
	sortKeyed(r.keys, r.tmp)
	return r.keys
}

func (r *ranker) kendall(x, y []uint32) float64 {
	n := len(x)
	if n < 2 {
		return math.NaN()
	}
	r.keys, r.tmp, r.ys, r.tmpYs = resize(r.keys, n), resize(r.tmp, n), resize(r.ys, n), resize(r.tmpYs, n)
	for i := range x {
		r.keys[i] = keyed{uint64(x[i])<<32 | uint64(y[i]), 0}
	}
	sortKeyed(r.keys, r.tmp)
	var tiedX, tiedBoth int64
	for i, runX, runBoth := 0, int64(0), int64(0); i < n; i++ {
		r.ys[i] = uint32(r.keys[i].key)
		if i == 0 {
			continue
		}
		if r.keys[i].key>>32 != r.keys[i-1].key>>32 {
			runX = 0
		} else {
			runX++
		}
		if r.keys[i].key != r.keys[i-1].key {
			runBoth = 0
		} else {
			runBoth++
		}
		tiedX, tiedBoth = tiedX+runX, tiedBoth+runBoth
	}
	// Among equal x the y are in order, so these points add no swaps.
	discordant := countSwaps(r.ys, r.tmpYs)
	var tiedY int64
	for i, run := 1, int64(0); i < n; i++ {
		if r.ys[i] != r.ys[i-1] {
			run = 0
		} else {
			run++
		}
		tiedY += run
	}
	all := int64(n) * int64(n-1) / 2
	if tiedX == all || tiedY == all {
		return math.NaN()
	}
	concordant := all - tiedX - tiedY + tiedBoth - discordant
	return clampCorrelation(float64(concordant-discordant) / (math.Sqrt(float64(all-tiedX)) * math.Sqrt(float64(all-tiedY))))
}

// countSwaps sorts y and returns the number of pairs that were in the wrong order. tmp has the same length.
func countSwaps(y, tmp []uint32) (swaps int64) {
	// Short runs are sorted by insertion, which needs no copies.
	const run = 16
	for i := 0; i < len(y); i += run {
		part := y[i:min(i+run, len(y))]
		for j := 1; j < len(part); j++ {
			v, k := part[j], j
			for ; k > 0 && part[k-1] > v; k-- {
				part[k] = part[k-1]
			}
			part[k] = v
			swaps += int64(j - k)
		}
	}
	from, to := y, tmp
	for width := run; width < len(y); width *= 2 {
		for i := 0; i < len(y); i += 2 * width {
			middle, end := min(i+width, len(y)), min(i+2*width, len(y))
			a, b := i, middle
			for k := i; k < end; k++ {
				if b == end || a < middle && from[a] <= from[b] {
					to[k] = from[a]
					a++
				} else {
					to[k] = from[b]
					b++
					swaps += int64(middle - a)
				}
			}
		}
		from, to = to, from
	}
	copy(y, from)
	return swaps
}

// clampCorrelation removes rounding errors beyond 1. NaN stays NaN.
func clampCorrelation(r float64) float64 {
	return max(-1, min(1, r))
}

// resize returns a slice of n elements, reusing s if its capacity suffices.
func resize[T any](s []T, n int) []T {
	if cap(s) < n {
		return make([]T, n)
	}
	return s[:n]
}
