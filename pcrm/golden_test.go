package pcrm_test

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/internal/testkit"
)

// golden holds the cases of tests/golden, which mpmath computed with 60 digits.
type golden struct {
	Cases struct {
		Delta []struct {
			Similarity, Beta1, Beta2, Beta3, Delta float64
		}
		Pair []struct {
			Margin         float64
			Delta          *float64 // nil is unconstrained
			LabelSmoothing float64  `json:"label_smoothing"`
			Loss, Grad     float64
		}
		RewardBatch []struct {
			Chosen, Rejected, Delta  []float64
			CenterRewardsCoefficient float64 `json:"center_rewards_coefficient"`
			Loss                     float64
			GradChosen               []float64 `json:"grad_chosen"`
			GradRejected             []float64 `json:"grad_rejected"`
		} `json:"reward_batch"`
		Span []struct {
			ChosenIDs   []int64 `json:"chosen_ids"`
			RejectedIDs []int64 `json:"rejected_ids"`
			PadTokenID  int64   `json:"pad_token_id"`
			Start, End  int
		}
		TokenBatch []struct {
			ChosenIDs       [][]int64   `json:"chosen_ids"`
			RejectedIDs     [][]int64   `json:"rejected_ids"`
			PadTokenID      int64       `json:"pad_token_id"`
			ChosenRewards   [][]float64 `json:"chosen_rewards"`
			RejectedRewards [][]float64 `json:"rejected_rewards"`
			Delta           []float64
			Loss            float64
			GradChosen      [][]float64 `json:"grad_chosen"`
		} `json:"token_batch"`
		DPOBatch []struct {
			PolicyChosen       []float64 `json:"policy_chosen_logps"`
			PolicyRejected     []float64 `json:"policy_rejected_logps"`
			ReferenceChosen    []float64 `json:"reference_chosen_logps"`
			ReferenceRejected  []float64 `json:"reference_rejected_logps"`
			Delta              []float64
			Beta               float64
			LabelSmoothing     float64 `json:"label_smoothing"`
			Loss               float64
			GradPolicyChosen   []float64 `json:"grad_policy_chosen"`
			GradPolicyRejected []float64 `json:"grad_policy_rejected"`
			ChosenRewards      []float64 `json:"chosen_rewards"`
			RejectedRewards    []float64 `json:"rejected_rewards"`
		} `json:"dpo_batch"`
		WinProbability []struct {
			Margin         float64
			Delta          *float64 // nil is unconstrained
			WinProbability float64  `json:"win_probability"`
		} `json:"win_probability"`
	}
}

func readGolden(t testing.TB) golden {
	data, err := os.ReadFile("../tests/golden/vectors.json")
	require.NoError(t, err)
	var g golden
	require.NoError(t, json.Unmarshal(data, &g))
	return g
}

var (
	closeTo   = testkit.CloseTo
	tiers     = testkit.Tiers
	forceTier = testkit.ForceTier
)

func TestGoldenDelta(t *testing.T) {
	for _, c := range readGolden(t).Cases.Delta {
		got := pcrm.Constraint{Beta1: c.Beta1, Beta2: c.Beta2, Beta3: c.Beta3}.Delta(c.Similarity)
		// beta1/(s+beta2) and beta3 cancel, so the error is that of the larger one.
		closeTo(t, c.Delta, got, 0, 1e-15*(math.Abs(c.Beta3)+math.Abs(c.Delta)))
	}
}

func TestGoldenPair(t *testing.T) {
	cases := readGolden(t).Cases.Pair
	require.Greater(t, len(cases), 400)
	for _, c := range cases {
		delta := math.Inf(1)
		if c.Delta != nil {
			delta = *c.Delta
		}
		loss, grad := pcrm.PairLoss(c.Margin, delta, c.LabelSmoothing)
		// Near the least subnormal number the rounding error is as large: arm64's math.Exp returns 0.
		closeTo(t, c.Loss, loss, 1e-12, math.SmallestNonzeroFloat64, "%+v", c)
		// The gradient is a difference of two numbers up to 1. Near its zero it has their
		// rounding error, 2 ulp of 1, and no relative precision.
		closeTo(t, c.Grad, grad, 1e-12, 4.5e-16, "%+v", c)
	}
}

func TestGoldenWinProbability(t *testing.T) {
	cases := readGolden(t).Cases.WinProbability
	require.Greater(t, len(cases), 200)
	for _, c := range cases {
		delta := math.Inf(1)
		if c.Delta != nil {
			delta = *c.Delta
		}
		// Five factors with an exp or expm1 each, of 1 ulp, and their products: 6 ulp. What is
		// under the least normal number has that number's rounding.
		closeTo(t, c.WinProbability, pcrm.WinProbability(c.Margin, delta), 6*0x1p-52, 0x1p-1074, "%+v", c)
	}
}

// Every tier in both precisions.
func TestGoldenBatches(t *testing.T) {
	for _, tier := range tiers() {
		t.Run(tier, func(t *testing.T) {
			forceTier(t, tier)
			t.Run("reward/float64", func(t *testing.T) { goldenRewardBatch[float64](t, 1e-12) })
			t.Run("reward/float32", func(t *testing.T) { goldenRewardBatch[float32](t, 2e-6) })
			t.Run("token/float64", func(t *testing.T) { goldenTokenBatch[float64](t, 1e-12) })
			t.Run("token/float32", func(t *testing.T) { goldenTokenBatch[float32](t, 2e-6) })
			t.Run("dpo/float64", func(t *testing.T) { goldenDPOBatch[float64](t, 1e-12) })
			t.Run("dpo/float32", func(t *testing.T) { goldenDPOBatch[float32](t, 2e-6) })
		})
	}
}

func goldenTokenBatch[F pcrm.Float](t *testing.T, tolerance float64) {
	cases := readGolden(t).Cases.TokenBatch
	require.NotEmpty(t, cases)
	for _, c := range cases {
		rows, width := len(c.Delta), len(c.ChosenIDs[0])
		gradChosen, gradRejected := make([]F, rows*width), make([]F, rows*width)
		for i := range gradChosen {
			gradChosen[i], gradRejected[i] = 7, 7 // values outside the span are overwritten
		}
		loss, err := pcrm.TokenLoss(nil, gradChosen, gradRejected,
			to[F](slices.Concat(c.ChosenRewards...)), to[F](slices.Concat(c.RejectedRewards...)),
			slices.Concat(c.ChosenIDs...), slices.Concat(c.RejectedIDs...), to[F](c.Delta), c.PadTokenID, pcrm.RewardOptions{})
		require.NoError(t, err)
		closeTo(t, c.Loss, loss, tolerance, 0)
		for i, want := range slices.Concat(c.GradChosen...) {
			closeTo(t, want, float64(gradChosen[i]), tolerance, 1e-15/float64(rows), "%d", i)
			closeTo(t, -want, float64(gradRejected[i]), tolerance, 1e-15/float64(rows), "%d", i)
		}
	}
}

func goldenDPOBatch[F pcrm.Float](t *testing.T, tolerance float64) {
	cases := readGolden(t).Cases.DPOBatch
	require.NotEmpty(t, cases)
	for _, c := range cases {
		n := len(c.Delta)
		gradChosen, gradRejected, chosenRewards, rejectedRewards := make([]F, n), make([]F, n), make([]F, n), make([]F, n)
		loss, err := pcrm.DPOLoss(nil, gradChosen, gradRejected, chosenRewards, rejectedRewards,
			to[F](c.PolicyChosen), to[F](c.PolicyRejected), to[F](c.ReferenceChosen), to[F](c.ReferenceRejected), to[F](c.Delta),
			pcrm.DPOOptions{Beta: c.Beta, LabelSmoothing: c.LabelSmoothing})
		require.NoError(t, err)
		closeTo(t, c.Loss, loss, tolerance, 0)
		for i := range n {
			closeTo(t, c.GradPolicyChosen[i], float64(gradChosen[i]), tolerance, 1e-16/float64(n))
			closeTo(t, c.GradPolicyRejected[i], float64(gradRejected[i]), tolerance, 1e-16/float64(n))
			closeTo(t, c.ChosenRewards[i], float64(chosenRewards[i]), tolerance, 0)
			closeTo(t, c.RejectedRewards[i], float64(rejectedRewards[i]), tolerance, 0)
		}
	}
}

func goldenRewardBatch[F pcrm.Float](t *testing.T, tolerance float64) {
	for _, c := range readGolden(t).Cases.RewardBatch {
		n := len(c.Chosen)
		gradChosen, gradRejected := make([]F, n), make([]F, n)
		loss, err := pcrm.RewardLoss(nil, gradChosen, gradRejected, to[F](c.Chosen), to[F](c.Rejected), to[F](c.Delta),
			pcrm.RewardOptions{CenterRewardsCoefficient: c.CenterRewardsCoefficient})
		require.NoError(t, err)
		closeTo(t, c.Loss, loss, tolerance, 0)
		for i := range n {
			// Scores are exact in float32: the absolute part is the rounding of the
			// gradient's terms, which are at most 1/n.
			closeTo(t, c.GradChosen[i], float64(gradChosen[i]), tolerance, 1e-15/float64(n))
			closeTo(t, c.GradRejected[i], float64(gradRejected[i]), tolerance, 1e-15/float64(n))
		}
	}
}

func to[F pcrm.Float](x []float64) []F { return testkit.Convert[F](x) }

func TestGoldenSpan(t *testing.T) {
	cases := readGolden(t).Cases.Span
	require.NotEmpty(t, cases)
	for _, tier := range tiers() {
		forceTier(t, tier)
		for i, c := range cases {
			start, end := pcrm.Span(c.ChosenIDs, c.RejectedIDs, c.PadTokenID)
			assert.Equal(t, [2]int{c.Start, c.End}, [2]int{start, end}, "%s: case %d", tier, i)
			start, end = pcrm.Span(c.RejectedIDs, c.ChosenIDs, c.PadTokenID)
			assert.Equal(t, [2]int{c.Start, c.End}, [2]int{start, end}, "%s: case %d swapped", tier, i)
		}
	}
}
