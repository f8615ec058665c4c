package pcrm_test

import (
	"fmt"
	"math"

	"github.com/pcrm-project/pcrm/pcrm"
)

// The loss is smallest at the target delta/2. Without a constraint it decreases forever.
func ExamplePairLoss() {
	for _, delta := range []float64{4, math.Inf(1)} {
		for _, margin := range []float64{1, 2, 3} {
			loss, slope := pcrm.PairLoss(margin, delta, 0)
			fmt.Printf("delta %v, margin %v: loss %.3f, slope %+.3f\n", delta, margin, loss, slope)
		}
	}
	// Output:
	// delta 4, margin 1: loss 0.362, slope -0.222
	// delta 4, margin 2: loss 0.254, slope +0.000
	// delta 4, margin 3: loss 0.362, slope +0.222
	// delta +Inf, margin 1: loss 0.313, slope -0.269
	// delta +Inf, margin 2: loss 0.127, slope -0.119
	// delta +Inf, margin 3: loss 0.049, slope -0.047
}

// The first margin is above its target delta/2 = 2 and the second below. The third pair has no
// constraint.
func ExampleRewardLoss() {
	chosen := []float32{3, 1, 1}
	rejected := []float32{0, 0, 0}
	delta := []float32{4, 4, float32(math.Inf(1))}
	gradChosen, gradRejected := make([]float32, 3), make([]float32, 3)
	loss, err := pcrm.RewardLoss(nil, gradChosen, gradRejected, chosen, rejected, delta, pcrm.RewardOptions{})
	fmt.Printf("%.4f %.4f %.4f %v\n", loss, gradChosen, gradRejected, err)

	_, err = pcrm.RewardLoss(nil, nil, nil, chosen, rejected, []float32{4, -1, 4}, pcrm.RewardOptions{})
	fmt.Println(err)
	// Output:
	// 0.3457 [0.0738 -0.0738 -0.0896] [-0.0738 0.0738 0.0896] <nil>
	// delta[1] must be greater than 0, got -1
}

// One pair of rows, with pad token 0. The gradient is 0 outside the span.
func ExampleTokenLoss() {
	chosenIDs, rejectedIDs := []int64{5, 8, 9, 7, 0}, []int64{5, 8, 3, 0, 0}
	chosen, rejected := []float64{0, 0, 1, 2, 0}, []float64{0, 0, 0, 0, 0}
	gradChosen, gradRejected := make([]float64, 5), make([]float64, 5)
	loss, err := pcrm.TokenLoss(nil, gradChosen, gradRejected, chosen, rejected, chosenIDs, rejectedIDs,
		[]float64{5}, 0, pcrm.RewardOptions{})
	fmt.Printf("%.4f %.3f %v\n", loss, gradChosen, err)
	// Output: 0.2535 [0.000 0.000 -0.125 -0.036 0.000] <nil>
}

func ExampleSpan() {
	fmt.Println(pcrm.Span([]int64{5, 8, 9, 7, 0}, []int64{5, 8, 3, 0, 0}, 0))
	// Output: 2 4
}

func ExampleDPOLoss() {
	policyChosen, policyRejected := []float32{-40}, []float32{-60}
	referenceChosen, referenceRejected := []float32{-50}, []float32{-55}
	gradChosen, gradRejected := make([]float32, 1), make([]float32, 1)
	chosenRewards, rejectedRewards := make([]float32, 1), make([]float32, 1)
	loss, err := pcrm.DPOLoss(nil, gradChosen, gradRejected, chosenRewards, rejectedRewards,
		policyChosen, policyRejected, referenceChosen, referenceRejected, []float32{5}, pcrm.DPOOptions{Beta: 0.1})
	fmt.Printf("%.4f %.4f %.1f %.1f %v\n", loss, gradChosen, chosenRewards, rejectedRewards, err)
	// Output: 0.2312 [-0.0153] [1.0] [-0.5] <nil>
}
