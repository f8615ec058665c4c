package pcrmtest_test

import (
	"fmt"
	"math"

	"github.com/pcrm-project/pcrm/pcrm/pcrmtest"
)

// printer replaces the *testing.T of a test.
type printer struct{}

func (printer) Helper()                           {}
func (printer) Fatalf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// A loss written directly from the formula is correct until scores become large. In a test:
//
//	func TestLoss(t *testing.T) { pcrmtest.Check(t, loss) }
func ExampleCheck() {
	loss := func(margin, delta float64) (loss, grad float64) {
		a, b := math.Exp(-margin), math.Exp(margin-delta)
		return math.Log(1+a) + math.Log(1+b), b/(1+b) - a/(1+a)
	}
	pcrmtest.Check(printer{}, loss)
	// Output: pcrmtest: overflow: loss at margin 800, delta 0.5: got +Inf, want 799.5 (tolerance 4.8e-11)
}
