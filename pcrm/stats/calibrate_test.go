package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/stat"
)

// The window by its definition: all scores at most as far as the k-th nearest.
func TestCalibrateUniform(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	for _, n := range []int{1, 2, 3, 40, 300} {
		for _, values := range []int{1, 2, 7, 1 << 30} { // from many ties to hardly any
			for _, frac := range []float64{0.01, 0.3, 2. / 3, 1} {
				scores, feature := make([]float64, n), make([]float64, n)
				for i := range scores {
					feature[i] = float64(r.IntN(values))
					scores[i] = 1e3 + feature[i]/float64(values) + r.NormFloat64()
				}
				k := max(min(int(frac*float64(n)), n), min(2, n))
				want := make([]float64, n)
				for i, x := range feature {
					distance := make([]float64, n)
					for j, other := range feature {
						distance[j] = math.Abs(other - x)
					}
					sorted := slices.Clone(distance)
					slices.Sort(sorted)
					var near []float64
					for j, d := range distance {
						if d <= sorted[k-1] {
							near = append(near, scores[j])
						}
					}
					want[i] = scores[i] - 0.5*stat.Mean(near, nil)
				}
				dst := make([]float64, n)
				o := CalibrateOptions{Method: MethodUniform, Alpha: 0.5, Lowess: LowessOptions{Frac: frac, Delta: 1e9}}
				require.NoError(t, Calibrate(dst, scores, feature, o))
				// Each side adds up to n scores of 1e3, with a rounding error of 2^-53 each.
				assert.InDeltaSlice(t, want, dst, 1e3*float64(n)*0x1p-52, "n %d, values %d, frac %g", n, values, frac)
			}
		}
	}
}

func TestCalibrateLowessAndPenalty(t *testing.T) {
	r := rand.New(rand.NewPCG(23, 24))
	scores, feature := make([]float64, 200), make([]float64, 200)
	for i := range scores {
		feature[i] = float64(r.IntN(90))
		scores[i] = math.Sqrt(feature[i]) + r.NormFloat64()
	}
	o := CalibrateOptions{Method: MethodLowess, Alpha: 0.25, Lowess: LowessOptions{Frac: 0.4, Iterations: 3, Delta: 2}}
	curve, want := make([]float64, 200), make([]float64, 200)
	require.NoError(t, Lowess(curve, feature, scores, o.Lowess))
	for i := range want {
		want[i] = scores[i] - 0.25*curve[i]
	}
	dst := slices.Clone(scores)
	require.NoError(t, Calibrate(dst, dst, feature, o)) // in place
	assert.Equal(t, want, dst)

	require.NoError(t, Calibrate(dst, scores, feature, CalibrateOptions{Method: MethodPenalty, Alpha: 0.01}))
	assert.Equal(t, scores[7]-0.01*feature[7], dst[7])
	for _, method := range []string{MethodLowess, MethodUniform, MethodPenalty} {
		require.NoError(t, Calibrate(nil, nil, nil, CalibrateOptions{Method: method}))
	}
}

func TestCalibrated(t *testing.T) {
	//                    stays  turned  tie  of tie  stays
	margins := []float64{2, 1, 0, 0, -1}
	calibrated := []float64{1, -1, 0.5, 0, -3}
	e := byKey(t)(Calibrated(margins, calibrated))
	assert.Equal(t, 2./5, e["accuracy_calibrated"].Value)
	assert.Equal(t, 2./5, e["flip_rate"].Value)
	assert.Equal(t, NLL(calibrated), e["nll_calibrated"].Value)
	assert.Equal(t, Brier(calibrated), e["brier_calibrated"].Value)
	ece, low, high := CalibrationError(Reliability(calibrated))
	assert.Equal(t, Estimate{"ece_calibrated", ece, low, high}, e["ece_calibrated"])
	assert.Len(t, e, 5)

	// The half-width of the interval of a fraction of n pairs is 1.96 sqrt(p (1-p) / n).
	r := rand.New(rand.NewPCG(25, 26))
	margins, calibrated = make([]float64, 2000), make([]float64, 2000)
	for i := range margins {
		margins[i], calibrated[i] = r.NormFloat64(), r.NormFloat64()
	}
	e = byKey(t)(Calibrated(margins, calibrated))
	flips := e["flip_rate"]
	assert.InDelta(t, 0.5, flips.Value, 0.05)
	assert.InEpsilon(t, 1.96*0.5/math.Sqrt(2000), flips.High-flips.Value, 0.2)
	// The half-width for a mean is 1.96 standard errors.
	for key, f := range map[string]func(float64) float64{"nll_calibrated": nll, "brier_calibrated": brier} {
		x := make([]float64, len(calibrated))
		for i, m := range calibrated {
			x[i] = f(m)
		}
		assert.InEpsilon(t, 1.96*stat.StdDev(x, nil)/math.Sqrt(2000), e[key].High-e[key].Value, 0.2, key)
	}
}

func TestCalibrateErrors(t *testing.T) {
	one, two := []float64{1}, []float64{1, 2}
	lowess := CalibrateOptions{Method: MethodLowess}
	_, empty := Calibrated(nil, nil)
	_, lengths := Calibrated(two, one)
	_, bad := Calibrated(two, []float64{1, inf})
	for message, err := range map[string]error{
		"dst must have 1 elements, like scores, got 0":           Calibrate(nil, one, one, lowess),
		"feature must have 2 elements, like scores, got 1":       Calibrate(two, two, one, lowess),
		"scores[0] must be finite, got NaN":                      Calibrate(one, []float64{nan}, one, lowess),
		"feature[0] must be finite, got +Inf":                    Calibrate(one, one, []float64{inf}, lowess),
		"alpha must be finite, got NaN":                          Calibrate(one, one, one, CalibrateOptions{Method: MethodPenalty, Alpha: nan}),
		`method must be lowess, uniform or penalty, got "loess"`: Calibrate(one, one, one, CalibrateOptions{Method: "loess"}),
		"frac must be in [0, 1], got 1.5":                        Calibrate(one, one, one, CalibrateOptions{Method: MethodUniform, Lowess: LowessOptions{Frac: 1.5}}),
		"margins must have at least one number, got none":        empty,
		"calibrated must have 2 elements, like margins, got 1":   lengths,
		"calibrated[1] must be finite, got +Inf":                 bad,
	} {
		assert.EqualError(t, err, message)
	}
}
