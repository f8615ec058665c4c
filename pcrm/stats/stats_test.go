package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/stat"

	"github.com/pcrm-project/pcrm/pcrm/internal/numeric"
	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
)

var nan, inf = math.NaN(), math.Inf(1)

// same treats two NaNs as equal.
func same(t *testing.T, want, got, tolerance float64, name string) {
	t.Helper()
	if math.IsNaN(want) {
		assert.True(t, math.IsNaN(got), "%s: got %v", name, got)
	} else if math.IsInf(want, 0) {
		assert.Equal(t, want, got, name)
	} else {
		assert.InDelta(t, want, got, tolerance, name)
	}
}

func TestCalibration(t *testing.T) {
	log3 := math.Log(3) // sigmoid is 3/4
	for _, c := range []struct {
		name                                   string
		margins                                []float64
		accuracy, brier, nll, ece, temperature float64
	}{
		{"half right at 3/4", []float64{log3, -log3}, 0.5, (1./16 + 9./16) / 2, (math.Log(4./3) + math.Log(4)) / 2, 0.25, inf},
		{"calibrated", []float64{log3, log3, log3, -log3}, 0.75, (3./16 + 9./16) / 4, (3*math.Log(4./3) + math.Log(4)) / 4, 0, 1},
		// At 9/10 a temperature of 2 gives 3/4.
		{"twice too sure", []float64{2 * log3, 2 * log3, 2 * log3, -2 * log3}, 0.75, (3./100 + 81./100) / 4, (3*math.Log(10./9) + math.Log(10)) / 4, 0.15, 2},
		{"ties are not right", []float64{0, 0}, 0, 0.25, math.Ln2, 0.5, inf},
		{"all right", []float64{1, 0}, 0.5, (math.Pow(1/(1+math.E), 2) + 0.25) / 2, (math.Log1p(math.Exp(-1)) + math.Ln2) / 2, (0.5 + 1/(1+math.E)) / 2, 0},
		{"sure and wrong", []float64{-1000}, 0, 1, 1000, 1, inf},
		{"extreme", []float64{1e300, -1e-300}, 0.5, 0.125, math.Ln2 / 2, 0.25, nan},
	} {
		same(t, c.accuracy, Accuracy(c.margins), 0, c.name)
		same(t, c.brier, Brier(c.margins), 1e-15, c.name)
		same(t, c.nll, NLL(c.margins), 1e-15, c.name)
		same(t, c.ece, ECE(Reliability(c.margins)), 1e-15, c.name)
		if !math.IsNaN(c.temperature) {
			same(t, c.temperature, Temperature(c.margins), 1e-12, c.name)
		}
	}
	for _, f := range []func([]float64) float64{Accuracy, Brier, NLL, Temperature} {
		assert.True(t, math.IsNaN(f(nil)))
	}
	assert.True(t, math.IsNaN(ECE(Reliability(nil))))
}

func TestReliability(t *testing.T) {
	// Confidence 1 belongs to the last bin, 0.5 to the first, 0.55 to the second.
	at := func(p float64) float64 { return math.Log(p / (1 - p)) }
	bins := Reliability([]float64{0, at(0.54), -at(0.56), 800})
	assert.Equal(t, 2, bins[0].Count)
	assert.InDelta(t, 0.52, bins[0].Confidence, 1e-15)
	assert.Equal(t, 0.5, bins[0].Accuracy)
	assert.Equal(t, 1, bins[1].Count)
	assert.Equal(t, 0.0, bins[1].Accuracy)
	// Wilson's interval of one of one begins at 1/(1 + 1.96^2).
	assert.InDelta(t, 0.20654931, bins[9].Low, 1e-8)
	assert.Equal(t, Bin{1, 1, 1, bins[9].Low, 1}, bins[9])
	assert.True(t, math.IsNaN(bins[5].Accuracy) && math.IsNaN(bins[5].Confidence))
}

// The derivative of the likelihood is 0 at the temperature, whatever the scale.
func TestTemperatureIsTheMinimum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, scale := range []float64{1e-200, 1e-6, 0.3, 1, 40, 1e8, 1e200} {
		margins := make([]float64, 500)
		for i := range margins {
			margins[i] = scale * (r.NormFloat64() + 0.7)
		}
		T := Temperature(margins)
		loss := func(T float64) (sum float64) {
			for _, m := range margins {
				sum += math.Max(-m/T, 0) + math.Log1p(math.Exp(-math.Abs(m/T)))
			}
			return sum
		}
		assert.Less(t, loss(T), loss(T*1.001), "scale %v", scale)
		assert.Less(t, loss(T), loss(T/1.001), "scale %v", scale)
	}
}

func TestQuantiles(t *testing.T) {
	x := []float64{4, 1, 3, 2}
	dst := make([]float64, 5)
	require.NoError(t, Quantiles(dst, x, []float64{0, 0.25, 0.5, 0.9, 1}))
	assert.InDeltaSlice(t, []float64{1, 1.75, 2.5, 3.7, 4}, dst, 1e-15)
	assert.Equal(t, []float64{4, 1, 3, 2}, x)
	require.NoError(t, Quantiles(dst[:1], []float64{7}, []float64{0.3}))
	assert.Equal(t, 7.0, dst[0])
	assert.EqualError(t, Quantiles(dst, x, []float64{0}), "dst must have 1 elements, like p, got 5")
	assert.EqualError(t, Quantiles(dst[:1], x, []float64{1.5}), "p[0] must be in [0, 1], got 1.5")
	assert.EqualError(t, Quantiles(dst[:1], nil, []float64{1}), "x must have at least one number, got none")
	assert.EqualError(t, Quantiles(dst[:1], []float64{0, nan}, []float64{1}), "x[1] must be finite, got NaN")
}

func TestHistogram(t *testing.T) {
	counts := make([]int64, 4)
	// Edges belong to the bin on their right, the last one to the last bin.
	require.NoError(t, Histogram(counts, []float64{-1, 0, 0.25, 0.4999, 0.5, 1, 1.0001}, 0, 1))
	assert.Equal(t, []int64{1, 2, 1, 1}, counts)
	// Divisions that round across an edge do not move a value to the next bin.
	for _, c := range []struct {
		bins      int
		low, high float64
	}{{10, 0, 1}, {7, -3, 5}, {49, 0.1, 0.3}} {
		for i := 1; i < c.bins; i++ {
			counts := make([]int64, c.bins)
			edge := c.low + float64(i)*((c.high-c.low)/float64(c.bins))
			require.NoError(t, Histogram(counts, []float64{edge, math.Nextafter(edge, -1e9)}, c.low, c.high))
			assert.Equal(t, []int64{1, 1}, counts[i-1:i+1], "edge %d of %v", i, c)
		}
	}
	assert.EqualError(t, Histogram(nil, nil, 0, 1), "dst must have at least one bin, got none")
	assert.EqualError(t, Histogram(counts, nil, 1, 1), "low must be finite and less than high, which is 1, got 1")
	assert.EqualError(t, Histogram(counts, nil, 0, inf), "low must be finite and less than high, which is +Inf, got 0")
	assert.EqualError(t, Histogram(counts, []float64{inf}, 0, 1), "x[0] must be finite, got +Inf")
}

func TestRankCorrelations(t *testing.T) {
	for _, c := range []struct {
		x, y              []float64
		spearman, kendall float64
	}{
		{[]float64{1, 2, 3}, []float64{10, 20, 30}, 1, 1},
		{[]float64{1, 2, 3}, []float64{3, 2, 1}, -1, -1},
		{[]float64{1, 2, 3, 4}, []float64{1, 3, 2, 4}, 0.8, 2. / 3},
		// Ranks 1.5 1.5 3 and 1 2 3; one pair of three is tied in x.
		{[]float64{5, 5, 9}, []float64{1, 2, 3}, math.Sqrt(3) / 2, 2 / math.Sqrt(6)},
		{[]float64{math.Copysign(0, -1), 0, 1}, []float64{1, 1, 2}, 1, 1},
		{[]float64{1, 1, 1}, []float64{1, 2, 3}, nan, nan},
		{[]float64{1}, []float64{1}, nan, nan},
		{nil, nil, nan, nan},
	} {
		s, err := Spearman(c.x, c.y)
		require.NoError(t, err)
		k, err := KendallTauB(c.x, c.y)
		require.NoError(t, err)
		same(t, c.spearman, s, 1e-15, "Spearman")
		same(t, c.kendall, k, 1e-15, "Kendall")
	}
	for _, f := range []func(x, y []float64) (float64, error){Spearman, KendallTauB} {
		_, err := f([]float64{1}, nil)
		assert.EqualError(t, err, "y must have 1 elements, like x, got 0")
		_, err = f([]float64{1, 2}, []float64{0, inf})
		assert.EqualError(t, err, "y[1] must be finite, got +Inf")
	}
}

// Both against their definitions over every pair of points, for lengths around those at which the sorts
// change their method.
func TestRankCorrelationsAgainstDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{2, 15, 16, 17, 33, 100, radixFrom - 1, radixFrom, 2000} {
		for _, values := range []int{2, 7, 1 << 40} {
			x, y := make([]float64, n), make([]float64, n)
			for i := range x {
				x[i] = float64(r.IntN(values)) - 3
				y[i] = float64(r.IntN(values))*1e-3 + x[i]*1e-4
			}
			rank := func(x []float64) []float64 {
				ranks := make([]float64, n)
				for i := range x {
					ranks[i] = 0.5
					for j := range x {
						if x[j] < x[i] {
							ranks[i]++
						} else if x[j] == x[i] {
							ranks[i] += 0.5
						}
					}
				}
				return ranks
			}
			got, err := Spearman(x, y)
			require.NoError(t, err)
			same(t, stat.Correlation(rank(x), rank(y), nil), got, 1e-12, "Spearman")

			sign := func(a, b float64) float64 { return float64(b2i(a > b) - b2i(a < b)) }
			var sum, nx, ny float64
			for i := range x {
				for j := range i {
					a, b := sign(x[i], x[j]), sign(y[i], y[j])
					sum, nx, ny = sum+a*b, nx+a*a, ny+b*b
				}
			}
			got, err = KendallTauB(x, y)
			require.NoError(t, err)
			if nx == 0 || ny == 0 {
				assert.True(t, math.IsNaN(got))
			} else {
				assert.InDelta(t, sum/math.Sqrt(nx*ny), got, 1e-12)
			}
		}
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestSortKeyed(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{0, 1, radixFrom - 1, radixFrom, 3000} {
		for _, mask := range []uint64{0, 7, 1 << 63, 0xffff_ffff, math.MaxUint64} {
			s := make([]keyed, n)
			for i := range s {
				s[i] = keyed{r.Uint64() & mask, uint32(i)}
			}
			want := slices.Clone(s)
			slices.SortStableFunc(want, func(a, b keyed) int {
				return b2i(a.key > b.key) - b2i(a.key < b.key)
			})
			sortKeyed(s, make([]keyed, n))
			assert.Equal(t, want, s, "%d elements, mask %x", n, mask)
		}
	}
}

func TestMedian(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for n := 1; n < 200; n++ {
		x := make([]float64, n)
		for i := range x {
			x[i] = float64(r.IntN(1 + n/2))
		}
		sorted := slices.Clone(x)
		slices.Sort(sorted)
		assert.Equal(t, numeric.Quantile(sorted, 0.5), median(x))
	}
}

func TestLowess(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	n := 300
	x, y, dst := make([]float64, n), make([]float64, n), make([]float64, n)
	for i := range x {
		x[i] = float64(r.IntN(90))
		y[i] = 3*x[i] - 50
	}
	// Smoothing a line gives the line, with and without ties and Delta.
	for _, delta := range []float64{0, 4} {
		require.NoError(t, Lowess(dst, x, y, LowessOptions{Iterations: 2, Delta: delta}))
		assert.InDeltaSlice(t, y, dst, 1e-9)
	}
	// Outliers lose their weight with the iterations.
	bent := slices.Clone(y)
	for i := 0; i < n; i += 10 {
		bent[i] += 1000
	}
	for i := range bent {
		bent[i] += r.NormFloat64()
	}
	require.NoError(t, Lowess(dst, x, bent, LowessOptions{}))
	assert.Greater(t, math.Abs(dst[5]-y[5]), 10.0)
	require.NoError(t, Lowess(dst, x, bent, LowessOptions{Iterations: 4}))
	assert.InDelta(t, y[5], dst[5], 2)
	// The order of the points does not matter beyond rounding, and dst may be y.
	swapped, x2 := slices.Clone(bent), slices.Clone(x)
	slices.Reverse(swapped)
	slices.Reverse(x2)
	require.NoError(t, Lowess(swapped, x2, swapped, LowessOptions{Iterations: 4}))
	slices.Reverse(swapped)
	assert.InDeltaSlice(t, dst, swapped, 1e-9)
}

// The results of statsmodels 0.15 for ties, an outlier and a window of six points.
func TestLowessAgainstStatsmodels(t *testing.T) {
	x, y := []float64{0, 1, 1, 2, 4, 5, 7, 8, 8, 9}, []float64{1, 3, 2, 5, 4, 7, 20, 6, 9, 8}
	dst := make([]float64, len(x))
	for iterations, want := range map[int][]float64{
		0: {1.211135954708734, 2.624473090575681, 2.624473090575681, 3.690598957966157, 5.28446826046967, 8.284468260469673,
			11.88982023945089, 10.126750233782058, 10.126750233782058, 6.923741224370771},
		2: {1.1908343532499466, 2.6069083431146285, 2.6069083431146285, 3.67567439260633, 5.327230901821075, 6.999999999999993,
			7.445053656019436, 7.693077229744169, 7.693077229744169, 7.958716905029133},
	} {
		require.NoError(t, Lowess(dst, x, y, LowessOptions{Frac: 0.6, Iterations: iterations}))
		assert.InDeltaSlice(t, want, dst, 1e-12)
	}
}

// If no line can be fitted, the curve is the mean.
func TestLowessDegenerate(t *testing.T) {
	for _, c := range []struct{ x, y, want []float64 }{
		{nil, nil, nil},
		{[]float64{3}, []float64{5}, []float64{5}},
		{[]float64{3, 3}, []float64{5, 7}, []float64{6, 6}},
		{[]float64{3, 3, 3, 3, 9}, []float64{1, 2, 3, 6, 0}, []float64{3, 3, 3, 3, 0}},
	} {
		dst := make([]float64, len(c.x))
		require.NoError(t, Lowess(dst, c.x, c.y, LowessOptions{Iterations: 3}))
		assert.InDeltaSlice(t, c.want, dst, 1e-12)
	}
}

func TestLowessErrors(t *testing.T) {
	one := []float64{1}
	for message, err := range map[string]error{
		"dst must have 1 elements, like x, got 0": Lowess(nil, one, one, LowessOptions{}),
		"y must have 1 elements, like x, got 0":   Lowess(one, one, nil, LowessOptions{}),
		"x[0] must be finite, got NaN":            Lowess(one, []float64{nan}, one, LowessOptions{}),
		"frac must be in [0, 1], got 1.5":         Lowess(one, one, one, LowessOptions{Frac: 1.5}),
		"iterations must be at least 0, got -1":   Lowess(one, one, one, LowessOptions{Iterations: -1}),
		"delta must be at least 0, got -1":        Lowess(one, one, one, LowessOptions{Delta: -1}),
	} {
		assert.EqualError(t, err, message)
	}
}

// byKey returns the estimates of a summary by key.
func byKey(t *testing.T) func([]Estimate, error) map[string]Estimate {
	return func(estimates []Estimate, err error) map[string]Estimate {
		t.Helper()
		require.NoError(t, err)
		m := map[string]Estimate{}
		for _, e := range estimates {
			m[e.Key] = e
		}
		return m
	}
}

func TestPairs(t *testing.T) {
	margins := []float64{12, 6, 1, -2}
	e := byKey(t)(Pairs(margins, []float64{1, -1, 0, 3}, []float64{10, 10, 2, 2}))
	for key, want := range map[string]float64{
		"accuracy": 0.75, "accuracy_longer_chosen": 0.5, "accuracy_shorter_chosen": 1,
		"margin/mean": 4.25, "margin/sd": math.Sqrt((7.75*7.75 + 1.75*1.75 + 3.25*3.25 + 6.25*6.25) / 4),
		"margin/share_over_5": 0.5, "margin/share_over_10": 0.25, "margin/quantiles/0.5": 3.5,
		"residual/mean": (7 + 1 + 0 - 3) / 4., "violation_rate": 0.25,
		"ece_plugin": ECE(Reliability(margins)), "nll": NLL(margins),
		"brier": Brier(margins), "temperature": Temperature(margins),
	} {
		assert.InDelta(t, want, e[key].Value, 1e-12, key)
		if key == "ece_plugin" {
			assert.Equal(t, []float64{-inf, inf}, []float64{e[key].Low, e[key].High}, "no interval of it would cover")
		}
		assert.LessOrEqual(t, e[key].Low, e[key].High, key)
	}
	value, low, high := CalibrationError(Reliability(margins))
	assert.Equal(t, Estimate{"ece", value, low, high}, e["ece"])
	s, _ := Spearman(margins, []float64{1, -1, 0, 3})
	assert.InDelta(t, s, e["spearman_margin_length_difference"].Value, 1e-15)

	// Statistics that lack their inputs or are not defined are omitted.
	e = byKey(t)(Pairs([]float64{-1, -2}, nil, []float64{inf, 1}))
	for _, key := range []string{"accuracy_longer_chosen", "spearman_margin_length_difference", "residual/mean", "temperature"} {
		assert.NotContains(t, e, key)
	}
	assert.Contains(t, e, "violation_rate")
	e = byKey(t)(Pairs([]float64{-1, 2}, []float64{1, 1}, nil))
	assert.NotContains(t, e, "accuracy_shorter_chosen")
	assert.NotContains(t, e, "violation_rate")

	for message, f := range map[string]func() ([]Estimate, error){
		"margins must have at least one number, got none":      func() ([]Estimate, error) { return Pairs(nil, nil, nil) },
		"margins[1] must be finite, got NaN":                   func() ([]Estimate, error) { return Pairs([]float64{0, nan}, nil, nil) },
		"difference must have 2 elements, like margins, got 1": func() ([]Estimate, error) { return Pairs([]float64{0, 1}, []float64{1}, nil) },
		"delta must have 2 elements, like margins, got 1":      func() ([]Estimate, error) { return Pairs([]float64{0, 1}, nil, []float64{1}) },
		"delta[1] must be greater than 0, got 0":               func() ([]Estimate, error) { return Pairs([]float64{0, 1}, nil, []float64{1, 0}) },
	} {
		_, err := f()
		assert.EqualError(t, err, message)
	}
}

// byDefinition computes pcrm.WinProbability by the definition in its documentation.
func byDefinition(m, delta float64) float64 {
	a := numeric.Sigmoid(m) - numeric.Sigmoid(-m-delta)
	return a / (a + numeric.Sigmoid(-m) - numeric.Sigmoid(m-delta))
}

func TestPairsByLoss(t *testing.T) {
	margins, delta := []float64{3, 1, 0, -1, -1.9}, []float64{4, 4, 2, 5, inf}
	p := []float64{1, byDefinition(1, 4), 0.5, byDefinition(-1, 5), numeric.Sigmoid(-1.9)}
	var nll, brier float64
	for _, p := range p {
		nll -= math.Log(p) / 5
		brier += (1 - p) * (1 - p) / 5
	}
	e := byKey(t)(Pairs(margins, nil, delta))
	assert.InDelta(t, nll, e["nll_by_loss"].Value, 1e-15)
	assert.InDelta(t, brier, e["brier_by_loss"].Value, 1e-15)
	assert.Equal(t, 0.0, e["ruled_out_by_loss"].Value)
	value, low, high := CalibrationError(ReliabilityByLoss(margins, delta))
	assert.Equal(t, Estimate{"ece_by_loss", value, low, high}, e["ece_by_loss"])
	bins := ReliabilityByLoss(margins, delta)
	assert.Equal(t, 1.0, bins[9].Confidence)
	assert.InDelta(t, p[1], bins[5].Confidence, 1e-15)

	// Margins that the loss rules out have an infinite NLL, which is omitted.
	e = byKey(t)(Pairs([]float64{2, -2, 1, -1.9}, nil, []float64{4, 4, 4, 4}))
	assert.NotContains(t, e, "nll_by_loss")
	assert.Equal(t, 0.25, e["ruled_out_by_loss"].Value)
	assert.Contains(t, e, "brier_by_loss")
	// sigmoid(-50) is lost when 1 - P is rounded, but the loss does not rule it out.
	e = byKey(t)(Pairs([]float64{2, -50}, nil, []float64{4, 1000}))
	assert.Equal(t, 0.0, e["ruled_out_by_loss"].Value)
	assert.InDelta(t, 25, e["nll_by_loss"].Value, 1e-12)
	// Without a finite delta, the probability is sigmoid(m).
	e = byKey(t)(Pairs([]float64{2, -2}, nil, []float64{inf, inf}))
	for _, key := range []string{"nll_by_loss", "brier_by_loss", "ece_by_loss", "ruled_out_by_loss"} {
		assert.NotContains(t, e, key)
	}
}

// A model at the optimum of its loss is calibrated by WinProbability and underconfident by sigmoid.
func TestAModelAtItsOptimum(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	margins, delta := make([]float64, 1500), make([]float64, 1500)
	for i := range margins {
		delta[i] = 1 + 2*r.Float64()
		margins[i] = r.Float64() * delta[i] / 2
		if r.Float64() > byDefinition(margins[i], delta[i]) {
			margins[i] = -margins[i]
		}
	}
	e := byKey(t)(Pairs(margins, nil, delta))
	assert.Equal(t, 0.0, e["ece_by_loss"].Low)
	assert.Greater(t, e["ece"].Low, 0.05)
	assert.Less(t, e["nll_by_loss"].High, e["nll"].Low)
	assert.Less(t, e["brier_by_loss"].High, e["brier"].Low)
	assert.Less(t, e["temperature"].High, 1.0)
}

func TestRankings(t *testing.T) {
	// The second prompt has equal scores and the third a single response. Neither has a correlation.
	scores, ratings := []float64{1, 2, 3, 5, 5, 9}, []float64{1, 3, 2, 1, 2, 0}
	spearman, kendall := make([]float64, 3), make([]float64, 3)
	e := byKey(t)(Rankings(spearman, kendall, scores, ratings, []int64{0, 3, 5, 6}))
	assert.InDelta(t, 0.5, spearman[0], 1e-15)
	assert.True(t, math.IsNaN(spearman[1]) && math.IsNaN(kendall[2]))
	assert.InDelta(t, 0.5, e["spearman_rating"].Value, 1e-15)
	assert.InDelta(t, 1./3, e["kendall_tau_b_rating"].Value, 1e-15)
	pooled, _ := Spearman(scores, ratings)
	assert.InDelta(t, pooled, e["pooled_spearman_rating"].Value, 1e-15)
	pooled, _ = KendallTauB(scores, ratings)
	assert.InDelta(t, pooled, e["pooled_kendall_tau_b_rating"].Value, 1e-15)

	for message, offsets := range map[string][]int64{
		"offsets must run from 0 to 6 in order, with at least one unit": {0, 4, 3, 6},
		"dst must have 1 elements, one per prompt, got 3":               {0, 6},
	} {
		_, err := Rankings(spearman, kendall, scores, ratings, offsets)
		assert.EqualError(t, err, message)
	}
	_, err := Lengths(scores, ratings[1:], []int64{0, 6})
	assert.EqualError(t, err, "lengths must have 6 elements, like scores, got 5")
}

// The interval of a mean is as wide as the normal interval, whether all units or only some are drawn.
// The tolerance is four standard errors, about 8% each, of a quantile of 1000 draws.
func TestBootstrapWidth(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for _, n := range []int{400, 4 * bootstrapPoints} {
		margins := make([]float64, n)
		for i := range margins {
			margins[i] = r.NormFloat64() + 1
		}
		e := byKey(t)(Pairs(margins, nil, nil))["margin/mean"]
		half := 1.96 * stat.PopStdDev(margins, nil) / math.Sqrt(float64(n))
		assert.InEpsilon(t, half, e.High-e.Value, 0.25)
		assert.InEpsilon(t, half, e.Value-e.Low, 0.25)
	}
}

// Units are drawn as a whole: prompts that are copies of each other add no information.
func TestBootstrapDrawsUnits(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	var scores, lengths []float64
	var offsets, singles []int64
	for range 200 {
		x, y := r.NormFloat64(), r.NormFloat64()
		offsets = append(offsets, int64(len(scores)))
		for range 4 {
			singles = append(singles, int64(len(scores)))
			scores, lengths = append(scores, x), append(lengths, y)
		}
	}
	width := func(offsets []int64) float64 {
		e := byKey(t)(Lengths(scores, lengths, append(offsets, int64(len(scores)))))["spearman_score_length"]
		return e.High - e.Low
	}
	assert.InEpsilon(t, 2, width(offsets)/width(singles), 0.25)
}

func TestBootstrapIsTheSameForAnyThreads(t *testing.T) {
	t.Cleanup(func() { parallel.SetNumThreads(0) })
	margins := []float64{1, 2, -3, 4, 5, -1}
	var all [][]Estimate
	for _, threads := range []int{1, 2, 5} {
		parallel.SetNumThreads(threads)
		e, err := Pairs(margins, nil, nil)
		require.NoError(t, err)
		all = append(all, e)
	}
	assert.Equal(t, all[0], all[1])
	assert.Equal(t, all[0], all[2])
}

func BenchmarkPairs(b *testing.B) {
	r := rand.New(rand.NewPCG(15, 16))
	margins, difference := make([]float64, 1_000_000), make([]float64, 1_000_000)
	for i := range margins {
		margins[i], difference[i] = 2*r.NormFloat64()+1, float64(r.IntN(600)-300)
	}
	for b.Loop() {
		if _, err := Pairs(margins, difference, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLowess(b *testing.B) {
	r := rand.New(rand.NewPCG(17, 18))
	x, y, dst := make([]float64, 1500), make([]float64, 1500), make([]float64, 20_000)
	for i := range x {
		x[i], y[i] = float64(i), r.NormFloat64()
	}
	for b.Loop() {
		if err := Lowess(dst, x, y, LowessOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
