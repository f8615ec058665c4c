package stats_test

import (
	"fmt"

	"github.com/pcrm-project/pcrm/pcrm/stats"
)

// Statistics of the margins of pairs, as in `pcrm report`, each with its 95% interval.
func ExamplePairs() {
	margins := []float64{2.5, 0.5, -0.5, 1.5}
	found, err := stats.Pairs(margins, nil, []float64{2, 2, 2, 2})
	if err != nil {
		fmt.Println(err)
	}
	for _, e := range found {
		if e.Key == "accuracy" || e.Key == "violation_rate" {
			fmt.Printf("%s %.2f, from %.2f to %.2f\n", e.Key, e.Value, e.Low, e.High)
		}
	}
	// Output:
	// accuracy 0.75, from 0.25 to 1.00
	// violation_rate 0.25, from 0.00 to 0.75
}

// Best of n from a pool of four responses. The scores are the proxy reward, gold is the true reward.
func ExampleBestOfN() {
	scores, gold := []float64{0, 1, 2, 3}, []float64{0, 2, 1, 1}
	points, err := stats.BestOfN(scores, gold, []int64{0, 4}, []int64{1, 2, 4})
	if err != nil {
		fmt.Println(err)
	}
	for _, point := range points {
		kl, proxy, gold := point.Estimates[0], point.Estimates[1], point.Estimates[2]
		fmt.Printf("%s %.3f, %s %.3f, %s %.3f\n", kl.Key, kl.Value, proxy.Key, proxy.Value, gold.Key, gold.Value)
	}
	// Output:
	// kl 0.000, proxy 1.500, gold 1.000
	// kl 0.193, proxy 2.333, gold 1.167
	// kl 0.636, proxy 3.000, gold 1.000
}
