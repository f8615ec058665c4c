package stats

import (
	"math"
	"slices"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
)

// LowessOptions are the settings of [Lowess].
type LowessOptions struct {
	// Frac is the fraction of the points to which each local line is fitted, in [0, 1]. At
	// least two points are used. 0 means 2/3.
	Frac float64
	// Iterations is the number of times that the fit is repeated with weights that reduce the
	// influence of outliers. 0 is plain least squares; 3 is common.
	Iterations int
	// Delta is a distance in x within which fits are interpolated linearly instead of computed.
	// 0 computes all fits. A hundredth of the range of x is nearly as accurate.
	Delta float64
}

// Lowess computes a smooth curve through the points (x, y) and writes its value at each x to
// dst. The value is that of a line fitted to the nearest points by least squares with weights
//
//	(1 - (|x_j - x_i|/h)^3)^3 (1 - (r_j/(6 median|r|))^2)^2
//
// where h is the distance to the farthest neighbor and r the residuals of the previous
// iteration. A factor with a negative base is 0. dst may be y.
// (W. S. Cleveland, Journal of the American Statistical Association 74, 1979.)
//
// The points may be in any order. Points with equal x are combined before the fits, so the
// time depends on the number of distinct x. It is quadratic in this number if Delta is 0.
//
// Special cases: if fewer than two neighbors have weight, or all have the same x, the curve
// is the mean of the y at this x. Iterations stop once the median residual is at most 1e-7,
// because the weights would then consist of rounding errors. The slices may be empty.
//
// Errors, each a *pcrm.ArgumentError: slices of different lengths; an element that is
// not finite; an option out of range.
func Lowess(dst, x, y []float64, o LowessOptions) error {
	if len(dst) != len(x) {
		return argument.Errorf("dst", -1, "must have %d elements, like x, got %d", len(x), len(dst))
	}
	if err := checkPaired("x", x, "y", y); err != nil {
		return err
	}
	if err := o.check(); err != nil {
		return err
	}
	if len(x) == 0 {
		return nil
	}
	newSmoother(x, y, o).run(dst, o.Iterations)
	return nil
}

func (o LowessOptions) check() error {
	switch {
	case !(o.Frac >= 0 && o.Frac <= 1):
		return argument.Errorf("frac", -1, "must be in [0, 1], got %v", o.Frac)
	case o.Iterations < 0:
		return argument.Errorf("iterations", -1, "must be at least 0, got %d", o.Iterations)
	case !(o.Delta >= 0):
		return argument.Errorf("delta", -1, "must be at least 0, got %v", o.Delta)
	}
	return nil
}

// smoother holds the points sorted by x. Points with equal x form a group.
type smoother struct {
	order  []uint32  // the caller's index of each point
	y      []float64 // of each point
	weight []float64 // of each point, from its residual
	group  []uint32  // of each point
	start  []int     // of each group, its first point; and the number of points

	x         []float64 // of each group
	w, wy     []float64 // of each group: the sums of weight and of weight*y
	positive  []int     // of each group: the number of points with weight
	fit       []float64 // of each group
	fits      []window  // the groups at which a line is fitted
	residuals []float64 // scratch
}

// A window is the neighborhood of a group: the points [left, right).
type window struct {
	group       int
	left, right int
	radius      float64
}

func newSmoother(x, y []float64, o LowessOptions) *smoother {
	n := len(x)
	s := &smoother{
		order: make([]uint32, n), y: make([]float64, n), weight: make([]float64, n), group: make([]uint32, n),
		residuals: make([]float64, n),
	}
	code := codes(x)
	groups := int(slices.Max(code)) + 1
	s.x, s.fit = make([]float64, groups), make([]float64, groups)
	s.w, s.wy, s.positive = make([]float64, groups), make([]float64, groups), make([]int, groups)
	// A counting sort; the codes are the indices of the groups.
	s.start = make([]int, groups+1)
	for _, g := range code {
		s.start[g+1]++
	}
	for g := range groups {
		s.start[g+1] += s.start[g]
	}
	next := slices.Clone(s.start)
	for i, g := range code {
		at := next[g]
		next[g]++
		s.order[at], s.group[at], s.y[at], s.weight[at], s.x[g] = uint32(i), g, y[i], 1, x[i]
	}
	s.plan(o)
	return s
}

// plan determines the groups at which to fit and their windows, which depend only on x.
func (s *smoother) plan(o LowessOptions) {
	n := len(s.y)
	if o.Frac == 0 {
		o.Frac = 2. / 3
	}
	// The small term corrects products that are an integer except for rounding.
	k := max(min(int(o.Frac*float64(n)+1e-10), n), min(2, n))
	last := len(s.x) - 1
	left, right := 0, k
	for g := 0; ; {
		x := s.x[g]
		for right < n && x > (s.x[s.group[left]]+s.x[s.group[right]])/2 {
			left, right = left+1, right+1
		}
		radius := max(x-s.x[s.group[left]], s.x[s.group[right-1]]-x)
		s.fits = append(s.fits, window{g, left, right, radius})
		if g == last {
			return
		}
		// The next fit is at the farthest group within Delta, or at the next group. If all
		// remaining groups lie within Delta, the group of the last but one point gets a fit too.
		next := g + 1
		for next <= last && s.x[next] <= x+o.Delta {
			next++
		}
		if next > last {
			g = max(g+1, int(s.group[n-2]))
		} else {
			g = max(g+1, next-1)
		}
	}
}

func (s *smoother) run(dst []float64, iterations int) {
	for ; ; iterations-- {
		s.sum()
		parallel.Rows(len(s.fits), 1+1<<16/len(s.x), func(lo, hi int) {
			for _, w := range s.fits[lo:hi] {
				s.fit[w.group] = s.line(w)
			}
		})
		s.interpolate()
		if iterations == 0 || !s.reweigh() {
			break
		}
	}
	for at, i := range s.order {
		dst[i] = s.fit[s.group[at]]
	}
}

// sum adds up the points of each group.
func (s *smoother) sum() {
	for g := range s.x {
		w, wy, positive := 0.0, 0.0, 0
		for i := s.start[g]; i < s.start[g+1]; i++ {
			w += s.weight[i]
			wy += s.weight[i] * s.y[i]
			if s.weight[i] > 0 {
				positive++
			}
		}
		s.w[g], s.wy[g], s.positive[g] = w, wy, positive
	}
}

// line fits a line to a window and returns its value at the window's group. With d the
// distances in x from that group and w the weights, it computes the sums of
//
//	w, w d, w d^2, w y, w d y
//
// The sums with d lose no significant digits, because d is 0 where w is greatest.
func (s *smoother) line(v window) float64 {
	var sw, sd, sdd, sy, sdy float64
	points := 0
	add := func(d, tricube, w, wy float64) {
		w, wy = w*tricube, wy*tricube
		sw += w
		sd += w * d
		sdd += w * d * d
		sy += wy
		sdy += wy * d
	}
	x, inverse := s.x[v.group], 1/v.radius
	from, to := int(s.group[v.left]), int(s.group[v.right-1])+1
	// The window may contain only part of the first and the last group. Only the nearer of them has weight.
	inner, outer := from, to
	if v.left > s.start[from] {
		inner++
		s.part(from, v.left, min(v.right, s.start[from+1]), v, add, &points)
	}
	if v.right < s.start[to] && outer > inner {
		outer--
		s.part(outer, max(v.left, s.start[outer]), v.right, v, add, &points)
	}
	if v.radius > 0 {
		xs, ws, wys, positive := s.x[inner:outer], s.w[inner:outer], s.wy[inner:outer], s.positive[inner:outer]
		for g, xg := range xs {
			d := xg - x
			t := math.Abs(d) * inverse
			t = 1 - t*t*t
			t = t * t * t
			if points < 2 && t > negligible {
				points += positive[g]
			}
			w, wy := ws[g]*t, wys[g]*t
			wd := w * d
			sw += w
			sd += wd
			sdd += wd * d
			sy += wy
			sdy += wy * d
		}
	}
	if v.radius == 0 || points < 2 || !(sw > 0) {
		return s.mean(v.group)
	}
	mean := sd / sw
	variance := sdd/sw - mean*mean
	level := sy / sw
	if variance <= 1e-15*v.radius*v.radius { // all the weight is at a single x
		return level
	}
	return level - mean*(sdy/sw-mean*level)/variance
}

// negligible is the largest weight that counts as no weight.
const negligible = 1e-12

// part adds the points [left, right) of a group.
func (s *smoother) part(g, left, right int, v window, add func(d, tricube, w, wy float64), points *int) {
	if v.radius == 0 {
		return
	}
	d := s.x[g] - s.x[v.group]
	t := math.Abs(d) / v.radius
	t = 1 - t*t*t
	t = t * t * t
	w, wy := 0.0, 0.0
	for i := left; i < right; i++ {
		w += s.weight[i]
		wy += s.weight[i] * s.y[i]
		if t > negligible && s.weight[i] > 0 {
			*points++
		}
	}
	add(d, t, w, wy)
}

// mean returns the unweighted mean of a group's y.
func (s *smoother) mean(g int) float64 {
	sum := 0.0
	for _, y := range s.y[s.start[g]:s.start[g+1]] {
		sum += y
	}
	return sum / float64(s.start[g+1]-s.start[g])
}

// interpolate fills the groups between two fits.
func (s *smoother) interpolate() {
	for i, v := range s.fits[1:] {
		a, b := s.fits[i].group, v.group
		for g := a + 1; g < b; g++ {
			t := (s.x[g] - s.x[a]) / (s.x[b] - s.x[a])
			s.fit[g] = t*s.fit[b] + (1-t)*s.fit[a]
		}
	}
}

// reweigh computes the weights from the residuals. It returns false if these are rounding errors.
func (s *smoother) reweigh() bool {
	for i, y := range s.y {
		s.weight[i] = math.Abs(y - s.fit[s.group[i]])
	}
	copy(s.residuals, s.weight)
	scale := 6 * median(s.residuals)
	if scale <= 6e-7 {
		return false
	}
	for i, r := range s.weight {
		t := r / scale
		t = max(0, 1-t*t)
		s.weight[i] = t * t
	}
	return true
}
