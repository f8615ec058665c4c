// Package pcrmtest tests implementations of the prior-constrained pair loss, in any
// language that Go can call, against the properties that define it:
//
//	L(m)  = softplus(-m) + softplus(m-delta)      softplus(x) = log(1+exp(x))
//	dL/dm = sigmoid(m-delta) - sigmoid(-m)
//
// [Check] tests the loss of one pair and [CheckBatch] the mean loss of a batch. [Golden]
// compares a loss with numbers computed with 60 digits. Each reports the first property that
// fails, with the arguments, the result and the expected result.
//
// All scores and constraints that are tried, and all sums of them that a property needs, are
// exact in float32, so the tolerances cover only the implementation's own rounding. The
// tolerance is r (1 + |m| + |delta| + |L|) for a loss, where an infinite delta counts as 0,
// and g for a gradient:
//
//	           r      g
//	float64    3e-14  1e-14
//	float32    2e-6   4e-6
//
// These are the errors of a good implementation with vectorized exponentials (see the
// package documentation of pcrm), plus a few units in the last place of the sum.
package pcrmtest

import (
	"fmt"
	"math"

	"github.com/pcrm-project/pcrm/pcrm"
)

// TB is the subset of [testing.TB] that this package needs.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// Pair computes the loss of a pair and its derivative with respect to the margin
// chosen - rejected. delta is greater than 0; it is +Inf for a pair without a constraint.
type Pair func(margin, delta float64) (loss, grad float64)

// Option describes the implementation under test.
type Option func(*settings)

// Float32 sets the tolerances for an implementation that computes in single precision. The
// default tolerances are those of float64.
func Float32() Option {
	return func(s *settings) { s.precision = single }
}

// LabelSmoothing is for an implementation with a label smoothing of e, 0 <= e < 0.5:
//
//	finite delta:  L(m) + e*delta, and the gradient of L
//	delta = +Inf:  (1-e) softplus(-m) + e softplus(m)
func LabelSmoothing(e float64) Option {
	return func(s *settings) { s.smoothing = e }
}

type settings struct {
	precision
	smoothing float64
}

type precision struct {
	loss, grad float64 // r and g of the package documentation
	step       float64 // of the finite differences: a power of two for which both errors are about equal
}

var (
	double = precision{3e-14, 1e-14, 0x1p-12}
	single = precision{2e-6, 4e-6, 0x1p-4}
)

func apply(options []Option) (s settings, err error) {
	s.precision = double
	for _, o := range options {
		o(&s)
	}
	if !(s.smoothing >= 0 && s.smoothing < 0.5) {
		err = fmt.Errorf("LabelSmoothing must be in [0, 0.5), got %v", s.smoothing)
	}
	return s, err
}

// Check fails t with the first of these properties that loss lacks:
//
//	sign            below the target the loss decreases as the margin grows
//	gradient        the gradient matches central differences of the loss
//	label smoothing for a finite delta, smoothing adds e*delta to the loss and keeps the gradient
//	minimum         at delta/2 the gradient is 0 and the loss is smallest
//	symmetry        L(delta/2+x) = L(delta/2-x), and the gradients are opposite
//	floor           L(delta/2) = 2 softplus(-delta/2) + e*delta
//	convexity       no chord lies below the loss, and the gradient does not decrease
//	overflow        margins of +-100 and +-800 and a delta of 1000 give the exact results
//	limits          at margins of +-1e4 the loss is finite and its slope is -1 or 1
//	unconstrained   delta = +Inf gives the Bradley-Terry loss, at all these margins
//	formula         everywhere else the loss is pcrm.PairLoss
func Check(t TB, loss Pair, options ...Option) {
	t.Helper()
	s, err := apply(options)
	if err == nil {
		err = s.check(loss)
	}
	if err != nil {
		t.Fatalf("pcrmtest: %v", err)
	}
}

var (
	deltas = []float64{0.5, 2, 4.5, 12, 30}
	inf    = math.Inf(1)
)

func (s settings) check(loss Pair) error {
	p := probe{s, loss}
	for _, property := range []struct {
		name string
		try  func(delta float64) error
	}{
		{"sign", p.sign},
		{"gradient", p.gradient},
		{"label smoothing", p.labelSmoothing},
		{"minimum", p.minimum},
		{"symmetry", p.symmetry},
		{"floor", p.floor},
		{"convexity", p.convexity},
		{"overflow", p.overflow},
		{"limits", p.limits},
		{"unconstrained", p.unconstrained},
		{"formula", p.formula},
	} {
		for _, delta := range deltas {
			if err := property.try(delta); err != nil {
				return fmt.Errorf("%s: %w", property.name, err)
			}
		}
	}
	return nil
}

type probe struct {
	settings
	pair Pair
}

// lossError is the tolerance of the loss L at (m, delta).
func (s settings) lossError(m, delta, loss float64) float64 {
	if math.IsInf(delta, 1) {
		delta = 0
	}
	return s.precision.loss * (1 + math.Abs(m) + delta + math.Abs(loss))
}

// mismatch returns nil if got is within tolerance of want. A NaN never is.
func mismatch(what string, m, delta, got, want, tolerance float64) error {
	if math.Abs(got-want) <= tolerance {
		return nil
	}
	return fmt.Errorf("%s at margin %v, delta %v: got %v, want %v (tolerance %.2g)", what, m, delta, got, want, tolerance)
}

// same compares with pcrm.PairLoss.
func (p probe) same(m, delta float64) error {
	loss, grad := p.pair(m, delta)
	wantLoss, wantGrad := pcrm.PairLoss(m, delta, p.smoothing)
	if err := mismatch("loss", m, delta, loss, wantLoss, p.lossError(m, delta, wantLoss)); err != nil {
		return err
	}
	return mismatch("gradient", m, delta, grad, wantGrad, p.grad)
}

func (p probe) sign(delta float64) error {
	// Between -delta/2 and delta/2, the loss of the opposite margin increases.
	for _, c := range []struct{ m, next float64 }{{-delta / 4, delta / 4}, {-8, -7}} {
		far, grad := p.pair(c.m, delta)
		near, _ := p.pair(c.next, delta)
		switch {
		case !(far > near):
			return fmt.Errorf("loss at margins %v and %v, delta %v: got %v and %v, want the first to be greater: "+
				"is the margin chosen - rejected?", c.m, c.next, delta, far, near)
		case !(grad < 0):
			return fmt.Errorf("gradient at margin %v, delta %v: got %v, want less than 0, because the loss decreases there", c.m, delta, grad)
		}
	}
	return nil
}

func (p probe) gradient(delta float64) error {
	for m := -40.0; m <= 40; m += 0.625 {
		_, grad := p.pair(m, delta)
		above, _ := p.pair(m+p.step, delta)
		below, _ := p.pair(m-p.step, delta)
		// The third derivative of softplus is at most 1/(6 sqrt(3)) < 0.1. For the two terms
		// together, the truncation error of the difference is below step^2 2 0.1/6.
		tolerance := p.grad + 0.2/6*p.step*p.step + p.lossError(m, delta, above)/p.step
		if err := mismatch("gradient against a central difference", m, delta, grad, (above-below)/(2*p.step), tolerance); err != nil {
			return err
		}
	}
	return nil
}

// labelSmoothing tests far from the minimum. There only smoothing of a single term changes the
// slopes; other errors around the minimum do not.
func (p probe) labelSmoothing(delta float64) error {
	if p.smoothing == 0 {
		return nil
	}
	const far = 64
	m := delta/2 - far
	loss, grad := p.pair(m, delta)
	want, _ := pcrm.PairLoss(m, delta, p.smoothing)
	if err := mismatch("slope far below the target", m, delta, grad, -1, p.grad); err != nil {
		return err
	}
	if err := mismatch("loss", m, delta, loss, want, p.lossError(m, delta, want)); err != nil {
		return err
	}
	_, grad = p.pair(delta/2+far, delta)
	return mismatch("slope far above the target", delta/2+far, delta, grad, 1, p.grad)
}

// aside holds the distances from the target that are tried.
var aside = []float64{0.125, 0.5, 1, 2.5, 8, 20, 32}

func (p probe) minimum(delta float64) error {
	least, grad := p.pair(delta/2, delta)
	if err := mismatch("gradient at the target delta/2", delta/2, delta, grad, 0, p.grad); err != nil {
		return err
	}
	for _, x := range aside {
		for _, m := range []float64{delta/2 - x, delta/2 + x} {
			if loss, _ := p.pair(m, delta); !(loss >= least-p.lossError(m, delta, least)) {
				return fmt.Errorf("loss at margin %v, delta %v: got %v, want at least %v, the loss at margin delta/2", m, delta, loss, least)
			}
		}
	}
	return nil
}

func (p probe) symmetry(delta float64) error {
	for _, x := range aside {
		m := delta/2 + x
		above, gradAbove := p.pair(m, delta)
		below, gradBelow := p.pair(delta/2-x, delta)
		if err := mismatch(fmt.Sprintf("loss, compared with its mirror image at margin %v,", delta/2-x), m, delta, above, below, 2*p.lossError(m, delta, above)); err != nil {
			return err
		}
		if err := mismatch(fmt.Sprintf("gradient, compared with the negative of that at margin %v,", delta/2-x), m, delta, gradAbove, -gradBelow, 2*p.grad); err != nil {
			return err
		}
	}
	return nil
}

func (p probe) floor(delta float64) error {
	loss, _ := p.pair(delta/2, delta)
	want := 2*math.Log1p(math.Exp(-delta/2)) + p.smoothing*delta
	return mismatch("loss at the target delta/2", delta/2, delta, loss, want, p.lossError(delta/2, delta, want))
}

func (p probe) convexity(delta float64) error {
	const h = 0.5
	for m := -40.0; m <= delta+40; m += h {
		below, gradBelow := p.pair(m-h, delta)
		loss, _ := p.pair(m, delta)
		above, gradAbove := p.pair(m+h, delta)
		if !(loss <= (below+above)/2+2*p.lossError(m, delta, loss)) {
			return fmt.Errorf("loss at margin %v, delta %v: got %v, want at most %v, the mean of the neighbors at +-%v",
				m, delta, loss, (below+above)/2, h)
		}
		if !(gradBelow <= gradAbove+2*p.grad) {
			return fmt.Errorf("gradient at margin %v, delta %v: got %v, want at least %v, the gradient at margin %v", m+h, delta, gradAbove, gradBelow, m-h)
		}
	}
	return nil
}

func (p probe) overflow(delta float64) error {
	for _, c := range []struct{ margin, delta float64 }{
		{100, delta}, {-100, delta}, {800, delta}, {-800, delta}, {0, 1000}, {1000, 1000},
	} {
		if err := p.same(c.margin, c.delta); err != nil {
			return err
		}
	}
	return nil
}

func (p probe) limits(delta float64) error {
	const far = 1e4
	if err := p.same(far, delta); err != nil {
		return err
	}
	return p.same(-far, delta)
}

func (p probe) unconstrained(float64) error {
	for _, m := range []float64{0, -0.125, 0.125, -1, 1, -4.5, 4.5, -20, 20, -40, 40, -100, 100, -800, 800, -1e4, 1e4} {
		if err := p.same(m, inf); err != nil {
			return err
		}
	}
	return nil
}

func (p probe) formula(delta float64) error {
	for m := -40.0; m <= delta+40; m += 0.375 {
		if err := p.same(m, delta); err != nil {
			return err
		}
	}
	return nil
}
