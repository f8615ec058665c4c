package stats

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/stat"
	"gonum.org/v1/gonum/stat/combin"
)

// atPoint returns one estimate of a point.
func atPoint(t *testing.T, p Point, key string) Estimate {
	t.Helper()
	for _, e := range p.Estimates {
		if e.Key == key {
			return e
		}
	}
	require.Fail(t, "no estimate", key)
	return Estimate{}
}

// somePools returns pools of 1 to 9 responses, with ties if there are few distinct values.
func somePools(r *rand.Rand, pools, values int) (scores, gold []float64, offsets []int64) {
	offsets = []int64{0}
	for range pools {
		for range 1 + r.IntN(9) {
			scores = append(scores, float64(r.IntN(values))/10-1)
			gold = append(gold, r.NormFloat64())
		}
		offsets = append(offsets, int64(len(scores)))
	}
	return scores, gold, offsets
}

// Against the definition: the best response of every subset, or all of them if several tie.
func TestBestOfNAgainstAllSubsets(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	for _, values := range []int{2, 5, 1 << 40} {
		scores, gold, offsets := somePools(r, 12, values)
		largest := 0
		for i := range 12 {
			largest = max(largest, int(offsets[i+1]-offsets[i]))
		}
		for n := 1; n <= largest; n++ {
			var proxy, golden, reference, referenceGold, pools float64
			for i := range 12 {
				s, g := scores[offsets[i]:offsets[i+1]], gold[offsets[i]:offsets[i+1]]
				if len(s) < n {
					continue
				}
				pools++
				reference += stat.Mean(s, nil)
				referenceGold += stat.Mean(g, nil)
				subsets := combin.Combinations(len(s), n)
				for _, subset := range subsets {
					best, of, sum := math.Inf(-1), 0., 0.
					for _, j := range subset {
						if s[j] > best {
							best, of, sum = s[j], 0, 0
						}
						if s[j] == best {
							of, sum = of+1, sum+g[j]
						}
					}
					proxy += best / float64(len(subsets))
					golden += sum / of / float64(len(subsets))
				}
			}
			points, err := BestOfN(scores, gold, offsets, []int64{1, int64(n)})
			require.NoError(t, err)
			assert.Equal(t, int(pools), points[1].Pools)
			// Binomials up to 9 are exact. The sums have a dozen terms of about 1.
			assert.InDelta(t, proxy/pools, atPoint(t, points[1], "proxy").Value, 1e-13*math.Max(1, float64(values)))
			assert.InDelta(t, golden/pools, atPoint(t, points[1], "gold").Value, 1e-13)
			assert.InDelta(t, (golden-referenceGold)/pools, atPoint(t, points[1], "gold_gain").Value, 1e-13)
			assert.InDelta(t, (proxy-reference)/pools, atPoint(t, points[1], "proxy_gain").Value, 1e-13*math.Max(1, float64(values)))
			assert.InDelta(t, math.Log(float64(n))-1+1/float64(n), atPoint(t, points[1], "kl").Value, 1e-15)
		}
	}
}

// Binomials far out of range: for a pool of the numbers 1 to N, the best of n is
// (N+1) n / (n+1) on average.
func TestBestOfNLarge(t *testing.T) {
	const size = 100_000
	scores := make([]float64, size)
	for i := range scores {
		scores[i] = float64((i*7919)%size + 1)
	}
	counts := []int64{1, 2, 64, 1000, 50_000, size}
	points, err := BestOfN(scores, scores, []int64{0, size}, counts)
	require.NoError(t, err)
	for k, n := range counts {
		// Each of 1e5 products has a rounding error of 1.1e-16 of the weight.
		assert.InEpsilon(t, (size+1)*float64(n)/float64(n+1), atPoint(t, points[k], "proxy").Value, 2e-11)
	}
	assert.Equal(t, 0., atPoint(t, points[0], "kl").Value)
	assert.InDelta(t, 0., atPoint(t, points[0], "proxy_gain").Value, 1e-6)
}

// By hand: two responses tie for the best of three.
func TestBestOfNTies(t *testing.T) {
	points, err := BestOfN([]float64{2, 1, 2}, []float64{10, -4, 20}, []int64{0, 3}, []int64{1, 2, 3})
	require.NoError(t, err)
	for k, want := range []struct{ proxy, gold float64 }{{5. / 3, 26. / 3}, {2, 15}, {2, 15}} {
		assert.InDelta(t, want.proxy, atPoint(t, points[k], "proxy").Value, 1e-15)
		assert.InDelta(t, want.gold, atPoint(t, points[k], "gold").Value, 1e-14)
	}
}

// The exact expectation agrees with the mean of actual draws.
func TestBestOfNIsUnbiased(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 24))
	const pools, size, n = 20_000, 6, 4
	var scores, gold []float64
	offsets := []int64{0}
	for range pools {
		for range size {
			x := r.NormFloat64()
			scores, gold = append(scores, x), append(gold, x+r.NormFloat64())
		}
		offsets = append(offsets, int64(len(scores)))
	}
	points, err := BestOfN(scores, gold, offsets, []int64{n})
	require.NoError(t, err)
	// The expected maximum of four standard normal numbers, with a tolerance of four standard errors.
	// Its standard deviation is 0.7; gold adds independent noise of 1.
	const expected = 1.0293753730
	assert.InDelta(t, expected, atPoint(t, points[0], "proxy").Value, 4*0.75/math.Sqrt(pools))
	assert.InDelta(t, expected, atPoint(t, points[0], "gold").Value, 4*1.2/math.Sqrt(pools))
}

// The policy maximizes the documented objective: no other policy has a higher value, and its numbers
// are the sums in its definition.
func TestSoftmaxPolicyIsTheOptimum(t *testing.T) {
	r := rand.New(rand.NewPCG(25, 26))
	for range 50 {
		n := 2 + r.IntN(8)
		scores, gold := make([]float64, n), make([]float64, n)
		for i := range scores {
			scores[i], gold[i] = 3*r.NormFloat64(), r.NormFloat64()
		}
		b := math.Exp(r.NormFloat64())
		points, err := SoftmaxPolicy(scores, gold, []int64{0, int64(n)}, []float64{b})
		require.NoError(t, err)
		proxy, kl := atPoint(t, points[0], "proxy").Value, atPoint(t, points[0], "kl").Value
		objective := proxy - b*kl
		// The optimum is b log mean exp(score / b).
		sum := 0.0
		for _, s := range scores {
			sum += math.Exp(s / b)
		}
		assert.InDelta(t, b*math.Log(sum/float64(n)), objective, 1e-12)
		wantGold := 0.0
		for i, s := range scores {
			wantGold += math.Exp(s/b) / sum * gold[i]
		}
		assert.InDelta(t, wantGold, atPoint(t, points[0], "gold").Value, 1e-12)
		for range 20 {
			other, total := make([]float64, n), 0.0
			for i := range other {
				other[i] = r.ExpFloat64()
				total += other[i]
			}
			value := 0.0
			for i, p := range other {
				p /= total
				value += p*scores[i] - b*p*math.Log(p*float64(n))
			}
			assert.Less(t, value, objective)
		}
	}
}

func TestSoftmaxPolicyLimits(t *testing.T) {
	scores, gold := []float64{800, 1, 800, -1e300}, []float64{1, 2, 5, 100}
	points, err := SoftmaxPolicy(scores, gold, []int64{0, 4}, []float64{0, 5e-324, 1, inf})
	require.NoError(t, err)
	for _, p := range points[:3] {
		assert.Equal(t, 800., atPoint(t, p, "proxy").Value)
		assert.Equal(t, 3., atPoint(t, p, "gold").Value)
		assert.InDelta(t, math.Ln2, atPoint(t, p, "kl").Value, 1e-15) // log(4 / 2)
	}
	assert.Equal(t, 27., atPoint(t, points[3], "gold").Value)
	assert.Equal(t, 0., atPoint(t, points[3], "kl").Value)
	// A pool with one response does not change for any coefficient.
	points, err = SoftmaxPolicy([]float64{7}, []float64{9}, []int64{0, 1}, []float64{0, 0.3, inf})
	require.NoError(t, err)
	for _, p := range points {
		assert.Equal(t, 7., atPoint(t, p, "proxy").Value)
		assert.Equal(t, 0., atPoint(t, p, "kl").Value)
	}
	// Close to the reference, rounding does not make the divergence negative.
	points, err = SoftmaxPolicy([]float64{0.1, 0.3, 0.7}, gold[:3], []int64{0, 3}, []float64{1e7, 1e8, 1e9, 1e17})
	require.NoError(t, err)
	for _, p := range points {
		kl := atPoint(t, p, "kl").Value
		assert.True(t, kl >= 0 && kl < 1e-15, "%v", kl)
	}
}

// The gain and its interval do not depend on differences between prompts.
func TestGainsOfPools(t *testing.T) {
	r := rand.New(rand.NewPCG(27, 28))
	var scores []float64
	offsets := []int64{0}
	for range 400 {
		offset := 1000 * r.NormFloat64()
		for _, x := range []float64{0, 1, 2, 3} {
			scores = append(scores, offset+x)
		}
		offsets = append(offsets, int64(len(scores)))
	}
	points, err := BestOfN(scores, scores, offsets, []int64{2})
	require.NoError(t, err)
	gain := atPoint(t, points[0], "proxy_gain")
	for _, v := range []float64{gain.Value, gain.Low, gain.High} {
		// (1 + 2 * 2 + 3 * 3) / 6 - 3/2; numbers of a few thousand have 12 decimal places.
		assert.InDelta(t, 5./6, v, 1e-11)
	}
	e := byKey(t)(Reference(scores, scores, offsets))
	assert.InDelta(t, math.Sqrt(5./3), e["proxy/sd"].Value, 1e-9)
}

func TestReference(t *testing.T) {
	scores, gold := []float64{1, 3, 10, 12, 14, 7}, []float64{0, 0, 0, 3, 0, 5}
	e := byKey(t)(Reference(scores, gold, []int64{0, 2, 5, 6}))
	assert.InDelta(t, (2+12+7)/3., e["proxy/mean"].Value, 1e-15)
	assert.InDelta(t, (0+1+5)/3., e["gold/mean"].Value, 1e-15)
	// Sums of squares 2 + 8 and 0 + 6, for 6 values in 3 pools.
	assert.InDelta(t, math.Sqrt(10./3), e["proxy/sd"].Value, 1e-15)
	assert.InDelta(t, math.Sqrt(6./3), e["gold/sd"].Value, 1e-15)
	for _, estimate := range e {
		assert.LessOrEqual(t, estimate.Low, estimate.High)
	}
	e = byKey(t)(Reference(scores[:2], gold[:2], []int64{0, 1, 2}))
	assert.NotContains(t, e, "proxy/sd")
	assert.Contains(t, e, "proxy/mean")
}

func TestOptimizationErrors(t *testing.T) {
	one, offsets := []float64{1, 2, 3}, []int64{0, 1, 3}
	bad := []float64{1, 2, nan}
	for message, f := range map[string]func() ([]Point, error){
		"gold must have 3 elements, like scores, got 2": func() ([]Point, error) { return BestOfN(one, one[:2], offsets, []int64{1}) },
		"offsets must run from 0 to 3 in order, with at least one unit": func() ([]Point, error) {
			return BestOfN(one, one, []int64{0, 2}, []int64{1})
		},
		"scores[1] must have at least one number, got none": func() ([]Point, error) {
			return SoftmaxPolicy(one, one, []int64{0, 1, 1, 3}, []float64{1})
		},
		"scores[1][1] must be finite, got NaN": func() ([]Point, error) { return BestOfN(bad, one, offsets, []int64{1}) },
		"gold[1][0] must be finite, got -Inf": func() ([]Point, error) {
			return SoftmaxPolicy(one, []float64{1, -inf, 2}, offsets, []float64{1})
		},
		"counts must have at least one number, got none": func() ([]Point, error) { return BestOfN(one, one, offsets, nil) },
		"counts[1] must be from 1 to 2, the size of the largest pool, got 3": func() ([]Point, error) {
			return BestOfN(one, one, offsets, []int64{1, 3})
		},
		"counts[0] must be from 1 to 2, the size of the largest pool, got 0": func() ([]Point, error) {
			return BestOfN(one, one, offsets, []int64{0})
		},
		"coefficients must have at least one number, got none": func() ([]Point, error) { return SoftmaxPolicy(one, one, offsets, nil) },
		"coefficients[1] must be at least 0, got -1": func() ([]Point, error) {
			return SoftmaxPolicy(one, one, offsets, []float64{0, -1})
		},
		"coefficients[0] must be at least 0, got NaN": func() ([]Point, error) {
			return SoftmaxPolicy(one, one, offsets, []float64{nan})
		},
	} {
		_, err := f()
		assert.EqualError(t, err, message)
	}
	_, err := Reference(bad, one, offsets)
	assert.EqualError(t, err, "scores[1][1] must be finite, got NaN")
}

func BenchmarkBestOfN(b *testing.B) {
	r := rand.New(rand.NewPCG(29, 30))
	scores, offsets := make([]float64, 1000*256), []int64{0}
	for i := range scores {
		scores[i] = r.NormFloat64()
	}
	for i := range 1000 {
		offsets = append(offsets, int64(i+1)*256)
	}
	for b.Loop() {
		if _, err := BestOfN(scores, scores, offsets, []int64{1, 2, 4, 8, 16, 32, 64, 128, 256}); err != nil {
			b.Fatal(err)
		}
	}
}
