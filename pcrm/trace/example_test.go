package trace_test

import (
	"fmt"

	"github.com/pcrm-project/pcrm/pcrm/trace"
)

// Check a recorded training run, whatever backend computed its losses.
func ExampleVerify() {
	report, err := trace.Verify("testdata/trace")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, row := range report.Rows {
		fmt.Println(row.Form, row.Dtype, row.Backend, row.Pairs, row.LossError <= row.LossTolerance, row.GradientError <= row.GradientTolerance)
	}
	fmt.Println(report.OK(), report.Failures)
	// Output:
	// dpo float32 go 9 true true
	// pair float32 go 9 true true
	// token float32 go 9 true true
	// true []
}
