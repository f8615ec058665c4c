package pcrmtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

// recorder is a TB that records failures and, unlike a real test, continues.
type recorder struct{ failures []string }

func (*recorder) Helper() {}
func (r *recorder) Fatalf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// pair is pcrm.PairLoss with label smoothing e.
func pair(e float64) Pair {
	return func(m, delta float64) (float64, float64) { return pcrm.PairLoss(m, delta, e) }
}

// batched is pcrm.RewardLoss in the precision F.
func batched[F pcrm.Float](e float64) Batch {
	return func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
		n := len(chosen)
		gradChosen, gradRejected := make([]F, n), make([]F, n)
		loss, err := pcrm.RewardLoss(nil, gradChosen, gradRejected, to[F](chosen), to[F](rejected), to[F](delta),
			pcrm.RewardOptions{LabelSmoothing: e})
		return loss, to[float64](gradChosen), to[float64](gradRejected), err
	}
}

func to[To, From pcrm.Float](from []From) []To {
	dst := make([]To, len(from))
	for i, v := range from {
		dst[i] = To(v)
	}
	return dst
}

func TestOurs(t *testing.T) {
	for _, e := range []float64{0, 0.1} {
		Check(t, pair(e), LabelSmoothing(e))
		Check(t, pair(e), LabelSmoothing(e), Float32())
		Golden(t, pair(e), LabelSmoothing(e))
		for _, tier := range []string{"scalar", pcrm.Tier()} {
			t.Cleanup(func() { require.NoError(t, pcrm.SetTier("auto")) })
			require.NoError(t, pcrm.SetTier(tier))
			CheckBatch(t, batched[float64](e), LabelSmoothing(e))
			CheckBatch(t, batched[float32](e), LabelSmoothing(e), Float32())
		}
		one := func(m, delta float64) (float64, float64) {
			loss, grad, _, err := batched[float32](e)([]float64{m}, []float64{0}, []float64{delta})
			require.NoError(t, err)
			return loss, grad[0]
		}
		Check(t, one, LabelSmoothing(e), Float32())
		Golden(t, one, LabelSmoothing(e), Float32())
	}
}

func softplus(x float64) float64 { return math.Max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }
func sigmoid(x float64) float64  { return math.Exp(-softplus(-x)) }

// Each planted mistake is caught by the corresponding property.
func TestPlantedMistakes(t *testing.T) {
	const e = 0.1
	for _, c := range []struct {
		mistake, property string
		loss              Pair
		options           []Option
	}{
		{"the gradient's sign", "sign: gradient at margin -0.125, delta 0.5: got 0.1", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			return loss, -grad
		}, nil},
		{"rejected - chosen", "sign: loss at margins -0.125 and 0.125, delta 0.5", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(-m, delta, 0)
			return loss, -grad
		}, nil},
		{"the second term detached", "gradient: gradient against a central difference at margin", func(m, delta float64) (float64, float64) {
			loss, _ := pcrm.PairLoss(m, delta, 0)
			return loss, -sigmoid(-m)
		}, nil},
		{"the gradient of the mean of two", "gradient: ", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			return loss, grad / 2
		}, nil},
		{"delta for delta/2", "minimum: gradient at the target delta/2 at margin 0.25, delta 0.5", func(m, delta float64) (float64, float64) {
			return pcrm.PairLoss(m, 2*delta, 0)
		}, nil},
		{"log(1 + exp(x))", "overflow: loss at margin 800, delta 0.5: got +Inf, want 799.5", func(m, delta float64) (float64, float64) {
			_, grad := pcrm.PairLoss(m, delta, 0)
			return math.Log(1+math.Exp(-m)) + math.Log(1+math.Exp(m-delta)), grad
		}, nil},
		{"the same in float32", "overflow: loss at margin 100, delta 0.5: got +Inf, want 99.5", func(m, delta float64) (float64, float64) {
			_, grad := pcrm.PairLoss(m, delta, 0)
			naive := func(x float64) float64 { return math.Log(1 + float64(float32(math.Exp(x)))) }
			return naive(-m) + naive(m-delta), grad
		}, []Option{Float32()}},
		{"exp(x) / (1 + exp(x))", "overflow: gradient at margin 800, delta 0.5: got NaN, want 1", func(m, delta float64) (float64, float64) {
			loss, _ := pcrm.PairLoss(m, delta, 0)
			return loss, math.Exp(m-delta)/(1+math.Exp(m-delta)) - 1/(1+math.Exp(m))
		}, nil},
		{"the first term alone smoothed", "label smoothing: slope far below the target", func(m, delta float64) (float64, float64) {
			return (1-e)*softplus(-m) + e*softplus(m) + softplus(m-delta), e - sigmoid(-m) + sigmoid(m-delta)
		}, []Option{LabelSmoothing(e)}},
		{"smoothing without its constant", "label smoothing: loss at margin -63.75, delta 0.5", pair(0), []Option{LabelSmoothing(e)}},
		{"the second term alone smoothed", "label smoothing: slope far below the target", func(m, delta float64) (float64, float64) {
			return softplus(-m) + (1-e)*softplus(m-delta) + e*softplus(delta-m), sigmoid(m-delta) - e - sigmoid(-m)
		}, []Option{LabelSmoothing(e)}},
		{"the unconstrained loss smoothed as a finite delta's", "unconstrained: gradient at margin 0, delta +Inf: got -0.5, want -0.4", func(m, delta float64) (float64, float64) {
			if math.IsInf(delta, 1) {
				return pcrm.PairLoss(m, delta, 0)
			}
			return pcrm.PairLoss(m, delta, e)
		}, []Option{LabelSmoothing(e)}},
		{"no exponential far out", "limits: loss at margin 10000, delta 0.5: got 1000, want 9999.5", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			return math.Min(loss, 1000), grad
		}, nil},
		{"a constant beside it", "floor: loss at the target delta/2 at margin 0.25", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			return loss + 1e-6, grad
		}, nil},
		{"one side steeper", "symmetry: gradient, compared with the negative of that at margin", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			if m > delta/2 {
				grad += 1e-12
			}
			return loss, grad
		}, nil},
		{"one side larger", "symmetry: loss, compared with its mirror image at margin", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			if m > delta/2 {
				loss += 5e-13
			}
			return loss, grad
		}, nil},
		{"a lower loss elsewhere", "minimum: loss at margin", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			if m == delta/2+32 {
				loss = 0
			}
			return loss, grad
		}, nil},
		{"a falling gradient", "convexity: gradient at margin", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			return loss, grad + 1e-12*math.Sin(8*(m-delta/2))
		}, nil},
		{"a bump", "convexity: loss at margin", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			return loss + 2e-11*math.Sin(8*(m-delta/2))*math.Sin(8*(m-delta/2)), grad
		}, nil},
		{"another curve with the same ends", "formula: loss at margin", func(m, delta float64) (float64, float64) {
			loss, grad := pcrm.PairLoss(m, delta, 0)
			if x := m - delta/2; math.Abs(x) < 5 {
				loss += 3e-12 * x * x * math.Exp(-x*x) // still convex, symmetric and with the same minimum
			}
			return loss, grad
		}, nil},
		{"NaN", "sign: loss at margins -0.125 and 0.125, delta 0.5: got NaN and NaN", func(m, delta float64) (float64, float64) { return math.NaN(), math.NaN() }, nil},
	} {
		var r recorder
		Check(&r, c.loss, c.options...)
		if assert.Len(t, r.failures, 1, c.mistake) {
			assert.Contains(t, r.failures[0], "pcrmtest: "+c.property, c.mistake)
		}
	}
}

func TestPlantedMistakesOfBatches(t *testing.T) {
	good := batched[float64](0)
	scaled := func(loss, grad float64) Batch {
		return func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			l, gradChosen, gradRejected, err := good(chosen, rejected, delta)
			n := float64(len(chosen))
			for i := range chosen {
				gradChosen[i] *= math.Pow(n, grad)
				gradRejected[i] *= math.Pow(n, grad)
			}
			return l * math.Pow(n, loss), gradChosen, gradRejected, err
		}
	}
	for _, c := range []struct {
		mistake, property string
		loss              Batch
	}{
		{"the mean twice", "mean: loss, batch of 2", scaled(-1, -1)},
		{"the sum", "mean: loss, batch of 2", scaled(1, 1)},
		{"the gradient of the mean of means", "gradient scale: gradChosen[0], batch of 2", scaled(0, -1)},
		{"the gradient of the sum", "gradient scale: gradChosen[0]", scaled(0, 1)},
		{"both gradients alike", "opposite: gradRejected[0], batch of 1", func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			loss, grad, _, err := good(chosen, rejected, delta)
			return loss, grad, grad, err
		}},
		{"the first delta for all", "mean: loss, batch of 2", func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			return good(chosen, rejected, slices.Repeat(delta[:1], len(delta)))
		}},
		{"inf - inf", "mixed deltas: mean: loss, batch of 2: got NaN", func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			loss, gradChosen, gradRejected, err := good(chosen, rejected, delta)
			if len(delta) > 1 && slices.Contains(delta, inf) {
				loss = math.NaN()
			}
			return loss, gradChosen, gradRejected, err
		}},
		{"a loss that depends on the order", "permutation: loss of the reversed batch, batch of 2", func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			loss, gradChosen, gradRejected, err := good(chosen, rejected, delta)
			if len(chosen) > 1 && !slices.Equal(chosen, random(len(chosen), false).chosen) {
				loss++
			}
			return loss, gradChosen, gradRejected, err
		}},
		{"a gradient that depends on the order", "permutation: gradChosen of the reversed batch[0]", func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			loss, gradChosen, gradRejected, err := good(chosen, rejected, delta)
			if len(chosen) > 1 && !slices.Equal(chosen, random(len(chosen), false).chosen) {
				gradChosen[0]++
			}
			return loss, gradChosen, gradRejected, err
		}},
		{"a batch of one", "batch of one: minimum: ", func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			delta = slices.Clone(delta)
			delta[0] *= 2
			return good(chosen, rejected, delta)
		}},
		{"an error", `error: batch of 1, chosen[0] 0.375, rejected[0] 0.5, delta[0] 0.5: got "out of luck", want none`, func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			return 0, nil, nil, errors.New("out of luck")
		}},
		{"an error for larger batches", `error: batch of 8`, func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			if len(chosen) == 8 {
				return 0, nil, nil, errors.New("out of luck")
			}
			return good(chosen, rejected, delta)
		}},
		{"margins instead of the scores", "inputs: batch of 1", func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			defer func() { chosen[0] -= rejected[0] }()
			return good(chosen, rejected, delta)
		}},
		{"one gradient only", "lengths: batch of 1: got 1 and 0 elements", func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			loss, grad, _, err := good(chosen, rejected, delta)
			return loss, grad, nil, err
		}},
	} {
		var r recorder
		CheckBatch(&r, c.loss)
		if assert.Len(t, r.failures, 1, c.mistake) {
			assert.Contains(t, r.failures[0], "pcrmtest: "+c.property, c.mistake)
		}
	}
}

func TestOptions(t *testing.T) {
	var r recorder
	Check(&r, pair(0), LabelSmoothing(0.5))
	CheckBatch(&r, batched[float64](0), LabelSmoothing(math.NaN()))
	Golden(&r, pair(0), LabelSmoothing(-1))
	Golden(&r, pair(0.2), LabelSmoothing(0.2))
	Golden(&r, pair(0), LabelSmoothing(0.1))
	Golden(&r, func(m, delta float64) (float64, float64) { loss, _ := pair(0)(m, delta); return loss, 0 })
	Golden(&r, func(m, delta float64) (float64, float64) {
		loss, grad := pair(0)(m, delta)
		return float64(float32(loss)), grad
	})
	assert.Equal(t, []string{
		"pcrmtest: LabelSmoothing must be in [0, 0.5), got 0.5",
		"pcrmtest: LabelSmoothing must be in [0, 0.5), got NaN",
		"pcrmtest: golden: LabelSmoothing must be in [0, 0.5), got -1",
		"pcrmtest: golden: LabelSmoothing must be 0 or 0.1 for golden vectors, got 0.2",
	}, r.failures[:4])
	assert.Contains(t, r.failures[4], "pcrmtest: golden: vector 1: gradient at margin 0, delta +Inf: got -0.5, want -0.4")
	assert.Contains(t, r.failures[5], "pcrmtest: golden: vector 0: gradient at margin 0, delta +Inf: got 0, want -0.5")
	assert.Contains(t, r.failures[6], "pcrmtest: golden: vector 0: loss at margin 0, delta +Inf: got 0.693147", "float32 is not good enough for float64's tolerance")
}

var update = flag.Bool("update", false, "write golden.json from tests/golden/vectors.json")

// The embedded golden vectors are derived from their only source, tests/golden.
func TestGoldenIsOfTheOneSource(t *testing.T) {
	data, err := os.ReadFile("../../tests/golden/vectors.json")
	require.NoError(t, err)
	var source struct {
		Cases struct{ Pair []goldenPair }
	}
	require.NoError(t, json.Unmarshal(data, &source))
	var want bytes.Buffer
	for i, v := range source.Cases.Pair {
		line, err := json.Marshal(v)
		require.NoError(t, err)
		want.WriteString(map[bool]string{true: "[", false: ",\n"}[i == 0])
		want.Write(line)
	}
	want.WriteString("]\n")
	if *update {
		require.NoError(t, os.WriteFile("golden.json", want.Bytes(), 0o644))
		return
	}
	assert.Equal(t, want.String(), string(goldenJSON), "run `go test ./pcrm/pcrmtest -update`")
}
