package pcrmtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Batch computes the mean of the pair losses of a batch and its gradients with respect to the
// scores. delta holds the constraint of each pair; finite and +Inf values may be mixed.
type Batch func(chosen, rejected, delta []float64) (loss float64, gradChosen, gradRejected []float64, err error)

// CheckBatch fails t with the first of these properties that loss lacks:
//
//	those of Check  for batches of one pair
//	inputs          the inputs are not modified
//	error           a batch of valid arguments gives no error
//	lengths         each gradient has one element per pair
//	mean            the loss is the mean of the losses of the pairs
//	gradient scale  each pair's gradient is that of its own loss, divided by the number of pairs
//	opposite        gradRejected = -gradChosen
//	mixed deltas    the same properties if some of the deltas are +Inf
//	permutation     another order of the pairs gives the same loss and reorders the gradients
func CheckBatch(t TB, loss Batch, options ...Option) {
	t.Helper()
	s, err := apply(options)
	if err == nil {
		err = s.checkBatch(loss)
	}
	if err != nil {
		t.Fatalf("pcrmtest: %v", err)
	}
}

// pairs holds scores, the constraints of the pairs and, after a call, the results of the loss.
type pairs struct {
	chosen, rejected, delta  []float64
	loss                     float64
	gradChosen, gradRejected []float64
}

func (s settings) checkBatch(loss Batch) (err error) {
	if broken := s.check(func(m, delta float64) (float64, float64) {
		// Scores that are not 0 tell margins from scores; the sum stays exact.
		p := pairs{chosen: []float64{m + 0.5}, rejected: []float64{0.5}, delta: []float64{delta}}
		if e := p.call(loss); e != nil && err == nil {
			err = e
		}
		if err != nil {
			return 0, 0
		}
		return p.loss, p.gradChosen[0]
	}); err == nil && broken != nil {
		err = fmt.Errorf("batch of one: %w", broken)
	}
	if err != nil {
		return err
	}
	for _, mixed := range []bool{false, true} {
		for _, n := range []int{1, 2, 3, 8, 17, 300} {
			p := random(n, mixed)
			if err := s.batch(loss, &p); err != nil {
				if mixed {
					return fmt.Errorf("mixed deltas: %w", err)
				}
				return err
			}
			if err := s.permutation(loss, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// random returns n pairs whose scores are multiples of 1/8, exact in every precision.
func random(n int, mixed bool) pairs {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	p := pairs{chosen: make([]float64, n), rejected: make([]float64, n), delta: make([]float64, n)}
	for i := range n {
		p.chosen[i] = float64(r.IntN(161)-80) / 8
		p.rejected[i] = float64(r.IntN(161)-80) / 8
		p.delta[i] = float64(1+r.IntN(80)) / 4
		if mixed && i%3 == 0 {
			p.delta[i] = inf
		}
	}
	return p
}

// call computes the loss of p and stores the results. The batch stays unchanged, even if loss
// writes to its inputs.
func (p *pairs) call(loss Batch) (err error) {
	chosen, rejected, delta := slices.Clone(p.chosen), slices.Clone(p.rejected), slices.Clone(p.delta)
	p.loss, p.gradChosen, p.gradRejected, err = loss(chosen, rejected, delta)
	n := len(p.chosen)
	switch {
	case err != nil:
		return fmt.Errorf("error: batch of %d, chosen[0] %v, rejected[0] %v, delta[0] %v: got %q, want none",
			n, p.chosen[0], p.rejected[0], p.delta[0], err)
	case !slices.Equal(chosen, p.chosen) || !slices.Equal(rejected, p.rejected) || !slices.Equal(delta, p.delta):
		return fmt.Errorf("inputs: batch of %d: got modified scores or deltas, want them unchanged", n)
	case len(p.gradChosen) != n || len(p.gradRejected) != n:
		return fmt.Errorf("lengths: batch of %d: got %d and %d elements in the gradients of chosen and rejected, want %d",
			n, len(p.gradChosen), len(p.gradRejected), n)
	}
	return nil
}

// batch compares a batch with its pairs, each as a batch of its own.
func (s settings) batch(loss Batch, p *pairs) error {
	if err := p.call(loss); err != nil {
		return err
	}
	n := len(p.chosen)
	var mean, tolerance float64
	grads := make([]float64, n)
	for i := range n {
		one := pairs{chosen: p.chosen[i : i+1], rejected: p.rejected[i : i+1], delta: p.delta[i : i+1]}
		if err := one.call(loss); err != nil {
			return err
		}
		mean += one.loss / float64(n)
		tolerance += summed(n) * s.lossError(p.chosen[i]-p.rejected[i], p.delta[i], one.loss) / float64(n)
		grads[i] = one.gradChosen[0]
	}
	if err := differs("mean: loss", -1, n, p.loss, mean, tolerance); err != nil {
		return err
	}
	for i, g := range grads {
		if err := differs("gradient scale: gradChosen", i, n, p.gradChosen[i], g/float64(n), 2*s.grad/float64(n)); err != nil {
			return err
		}
		if err := differs("opposite: gradRejected", i, n, p.gradRejected[i], -p.gradChosen[i], 2*s.grad/float64(n)); err != nil {
			return err
		}
	}
	return nil
}

// permutation compares the reversed batch with p, whose results are known.
func (s settings) permutation(loss Batch, p pairs) error {
	n := len(p.chosen)
	q := pairs{chosen: slices.Clone(p.chosen), rejected: slices.Clone(p.rejected), delta: slices.Clone(p.delta)}
	slices.Reverse(q.chosen)
	slices.Reverse(q.rejected)
	slices.Reverse(q.delta)
	if err := q.call(loss); err != nil {
		return err
	}
	if err := differs("permutation: loss of the reversed batch", -1, n, q.loss, p.loss, summed(n)*s.lossError(0, 0, p.loss)); err != nil {
		return err
	}
	for i := range n {
		if err := differs("permutation: gradChosen of the reversed batch", i, n, q.gradChosen[i], p.gradChosen[n-1-i], 2*s.grad/float64(n)); err != nil {
			return err
		}
	}
	return nil
}

// summed is the factor of the tolerance for a mean of n losses: two losses are compared, and
// adding the losses one by one may round n times.
func summed(n int) float64 { return 2 + float64(n)/16 }

// differs is mismatch for element i of a batch of n, or for its loss if i < 0.
func differs(what string, i, n int, got, want, tolerance float64) error {
	// Not >, because a NaN is a difference.
	if diff := got - want; diff >= -tolerance && diff <= tolerance {
		return nil
	}
	if i >= 0 {
		what = fmt.Sprintf("%s[%d]", what, i)
	}
	return fmt.Errorf("%s, batch of %d: got %v, want %v (tolerance %.2g)", what, n, got, want, tolerance)
}
