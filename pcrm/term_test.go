package pcrm_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/diff/fd"
	"gonum.org/v1/gonum/stat"

	"github.com/pcrm-project/pcrm/pcrm"
)

var terms = []pcrm.Term{pcrm.OffsetTerm, pcrm.SquaredTerm, pcrm.ForwardKLTerm, pcrm.BackwardKLTerm}

// The values against other code: gonum's divergence of two distributions, and what defines
// the others.
func TestTermValues(t *testing.T) {
	coin := func(x float64) []float64 { return []float64{1 / (1 + math.Exp(-x)), 1 / (1 + math.Exp(x))} }
	for m := -30.0; m <= 30; m += 1.7 {
		for x := -30.0; x <= 30; x += 1.3 {
			for _, term := range terms {
				want := map[pcrm.Term]float64{
					pcrm.OffsetTerm:     -math.Log(1 / (1 + math.Exp(x-m))),
					pcrm.SquaredTerm:    math.Pow(m-x, 2),
					pcrm.ForwardKLTerm:  stat.KullbackLeibler(coin(m), coin(x)),
					pcrm.BackwardKLTerm: stat.KullbackLeibler(coin(x), coin(m)),
				}[term]
				loss, _ := term.Loss(m, x)
				// The logarithms of coins near 1 keep eps = 2^-52 of what is 1; theirs of the
				// other side are up to 60 and have a few roundings.
				assert.InDelta(t, want, loss, 2e-15*(1+want), "term %d, m=%v x=%v", term, m, x)
			}
		}
	}
}

// The gradient against central differences: with a step of 1e-5 they err by h^2 L”'/6,
// 1e-10 at most, and by 1e-16/1e-5 of the loss and of its terms, which are up to |m|+|x|.
func TestTermGradient(t *testing.T) {
	for _, term := range terms {
		for m := -40.0; m <= 40; m += 0.7 {
			for _, x := range []float64{-30, -3.3, -0.5, 0, 0.1, 2, 17} {
				loss, grad := term.Loss(m, x)
				numeric := fd.Derivative(func(v float64) float64 { l, _ := term.Loss(v, x); return l }, m,
					&fd.Settings{Formula: fd.Central, Step: 1e-5})
				assert.InDelta(t, numeric, grad, 1e-10+4.4e-11*(math.Abs(m)+math.Abs(x)+loss), "term %d, m=%v x=%v", term, m, x)
			}
		}
	}
}

// The values that Term.Loss's documentation lists, and numbers of any size.
func TestTermSpecialCases(t *testing.T) {
	nan := math.NaN()
	softplus := func(x float64) float64 { return math.Max(x, 0) + math.Log1p(math.Exp(-math.Abs(x))) }
	p := 1 / (1 + math.Exp(-0.5))
	for _, c := range []struct {
		term             pcrm.Term
		m, x, loss, grad float64
	}{
		{pcrm.OffsetTerm, inf, 0.5, 0, 0},
		{pcrm.OffsetTerm, -inf, 0.5, inf, -1},
		{pcrm.OffsetTerm, -1e300, 5, 1e300, -1},
		{pcrm.SquaredTerm, inf, 0.5, inf, inf},
		{pcrm.SquaredTerm, -inf, 0.5, inf, -inf},
		{pcrm.SquaredTerm, 1e300, 0.5, inf, 2e300},
		{pcrm.ForwardKLTerm, inf, 0.5, softplus(-0.5), 0},
		{pcrm.ForwardKLTerm, -inf, 0.5, softplus(0.5), 0},
		{pcrm.ForwardKLTerm, 1e300, -1e300, 1e300, 0},
		{pcrm.ForwardKLTerm, 1e300, 0.5, softplus(-0.5), 0},
		{pcrm.BackwardKLTerm, inf, 0.5, inf, 1 - p},
		{pcrm.BackwardKLTerm, -inf, 0.5, inf, -p},
		{pcrm.BackwardKLTerm, inf, 1000, 0, 0},
		{pcrm.BackwardKLTerm, -inf, -1000, 0, 0},
		{pcrm.BackwardKLTerm, -inf, 1000, inf, -1},
		{pcrm.BackwardKLTerm, -1e300, 1e300, 1e300, -1},
		{pcrm.BackwardKLTerm, 1e300, 1e300, 0, 0},
		{pcrm.BackwardKLTerm, 800, 745, 0, 0},
		// The tails keep their digits: here KL is near exp(-40), for coins at 1 - exp(-40).
		{pcrm.BackwardKLTerm, 40, 50, math.Exp(-40) - 11*math.Exp(-50), math.Exp(-50) - math.Exp(-40)},
		{pcrm.ForwardKLTerm, -50, -40, math.Exp(-40) - 11*math.Exp(-50), -10 * math.Exp(-50)},
	} {
		loss, grad := c.term.Loss(c.m, c.x)
		same := func(want, got float64) {
			if want == 0 || math.IsInf(want, 0) {
				assert.InDelta(t, want, got, 1e-300, "%+v", c)
			} else {
				assert.InEpsilon(t, want, got, 1e-14, "%+v", c)
			}
		}
		same(c.loss, loss)
		same(c.grad, grad)
	}
	for _, term := range terms {
		for _, at := range [][2]float64{{nan, 1}, {1, nan}, {nan, 1000}, {nan, -1000}} {
			loss, grad := term.Loss(at[0], at[1])
			assert.True(t, math.IsNaN(loss) && math.IsNaN(grad), "term %d of %v: %v %v", term, at, loss, grad)
		}
	}
}

func TestTermProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 2000 {
		m, x := 5*r.NormFloat64(), 5*r.NormFloat64()
		for _, term := range terms[1:] {
			loss, _ := term.Loss(m, x)
			assert.GreaterOrEqual(t, loss, -0x1p-51, "a distance")
			zero, slope := term.Loss(x, x)
			assert.InDelta(t, 0, zero, 0x1p-50, "least at m = x")
			assert.InDelta(t, 0, slope, 0x1p-52)
			mirror, _ := term.Loss(-m, -x)
			assert.InDelta(t, loss, mirror, 1e-14*(1+loss), "the other way round")
		}
		forward, _ := pcrm.ForwardKLTerm.Loss(m, x)
		backward, _ := pcrm.BackwardKLTerm.Loss(x, m)
		assert.Equal(t, forward, backward, "one is the other's with the coins exchanged")
	}
}

func termBatch(n int) (x [4][]float64, offset []float64) {
	x, _ = logps(n)
	r := rand.New(rand.NewPCG(uint64(n), 10))
	for range n {
		offset = append(offset, float64(float32(2*r.NormFloat64())))
	}
	return
}

// The documented loop, on both sides of a block, on every tier, with and without references.
func TestTermLossIsTheDocumentedLoop(t *testing.T) {
	for _, tier := range tiers() {
		forceTier(t, tier)
		termLoop[float64](t, 1e-13)
		termLoop[float32](t, 1.2e-7) // rounded once
	}
}

func termLoop[F pcrm.Float](t *testing.T, tolerance float64) {
	for _, n := range []int{1, 2, 63, 64, 65, 2000} {
		x, offset := termBatch(n)
		for k, o := range []pcrm.TermOptions{
			{Term: pcrm.OffsetTerm, Beta: 0.1, RewardBeta: 0.1, OffsetScale: 1},
			{Term: pcrm.OffsetTerm, Beta: 0.1, OffsetScale: -0.3, L2: 0.02, Reduction: pcrm.Sum},
			{Term: pcrm.SquaredTerm, Beta: 1, RewardBeta: 0.1, OffsetScale: 1, Reduction: pcrm.None},
			{Term: pcrm.ForwardKLTerm, Beta: 0.05, RewardBeta: 0.1, OffsetScale: 2, Reduction: pcrm.Sum},
			{Term: pcrm.BackwardKLTerm, Beta: 0.05, RewardBeta: 0.1, OffsetScale: 2, L2: 0.01},
		} {
			refW, refL := to[F](x[2]), to[F](x[3])
			if k%2 == 1 {
				refW, refL = nil, nil
			}
			losses, gradChosen, gradRejected := make([]F, n), make([]F, n), make([]F, n)
			chosenRewards, rejectedRewards := make([]F, n), make([]F, n)
			got, err := pcrm.TermLoss(losses, gradChosen, gradRejected, chosenRewards, rejectedRewards,
				to[F](x[0]), to[F](x[1]), refW, refL, to[F](offset), o)
			require.NoError(t, err)
			scale, want := 1.0, 0.0
			if o.Reduction == pcrm.Mean {
				scale = 1 / float64(n)
			}
			for i := range n {
				w, l := x[0][i], x[1][i]
				if refW != nil {
					w, l = w-x[2][i], l-x[3][i]
				}
				closeTo(t, o.RewardBeta*w, float64(chosenRewards[i]), tolerance, 0)
				closeTo(t, o.RewardBeta*l, float64(rejectedRewards[i]), tolerance, 0)
				w, l = o.Beta*w, o.Beta*l
				loss, g := o.Term.Loss(w-l, o.OffsetScale*offset[i])
				loss += o.L2 * (w*w + l*l)
				want += loss
				closeTo(t, loss, float64(losses[i]), tolerance, 1e-15)
				closeTo(t, o.Beta*(g+2*o.L2*w)*scale, float64(gradChosen[i]), tolerance, 1e-15*scale)
				closeTo(t, o.Beta*(-g+2*o.L2*l)*scale, float64(gradRejected[i]), tolerance, 1e-15*scale)
			}
			closeTo(t, want*scale, got, 1e-13, 0)

			if o.Reduction == pcrm.None {
				continue
			}
			without, err := pcrm.TermLoss[F](nil, nil, nil, nil, nil, to[F](x[0]), to[F](x[1]), refW, refL, to[F](offset), o)
			require.NoError(t, err)
			assert.Equal(t, got, without, "the loss does not depend on what else is wanted")
		}
	}
}

// The whole batch against finite differences of its own value.
func TestTermLossGradient(t *testing.T) {
	n := 7
	x, offset := termBatch(n)
	for _, term := range terms {
		o := pcrm.TermOptions{Term: term, Beta: 0.05, OffsetScale: 0.7, L2: 0.01}
		gradChosen, gradRejected := make([]float64, n), make([]float64, n)
		_, err := pcrm.TermLoss(nil, gradChosen, gradRejected, nil, nil, x[0], x[1], x[2], x[3], offset, o)
		require.NoError(t, err)
		numeric := fd.Gradient(nil, func(p []float64) float64 {
			loss, err := pcrm.TermLoss(nil, nil, nil, nil, nil, p[:n], p[n:], x[2], x[3], offset, o)
			require.NoError(t, err)
			return loss
		}, slices.Concat(x[0], x[1]), &fd.Settings{Formula: fd.Central, Step: 1e-4})
		assert.InDeltaSlice(t, numeric, slices.Concat(gradChosen, gradRejected), 1e-9, "term %d", term)
	}
}

// Without an offset the term is Bradley-Terry and DPO: bit for bit, on every tier.
func TestTermLossWithoutOffset(t *testing.T) {
	for _, tier := range tiers() {
		forceTier(t, tier)
		t.Run(tier+" float64", func(t *testing.T) { withoutOffset[float64](t) })
		t.Run(tier+" float32", func(t *testing.T) { withoutOffset[float32](t) })
	}
}

func withoutOffset[F pcrm.Float](t *testing.T) {
	for _, n := range []int{1, 100, 1000} {
		x, _ := logps(n)
		free, zeros := to[F](slices.Repeat([]float64{inf}, n)), make([]F, n)
		pc, pr, rc, rr := to[F](x[0]), to[F](x[1]), to[F](x[2]), to[F](x[3])
		for _, reduction := range []pcrm.Reduction{pcrm.Mean, pcrm.None} {
			var got, want [5][]F
			for i := range got {
				got[i], want[i] = make([]F, n), make([]F, n)
			}
			loss, err := pcrm.DPOLoss(want[0], want[1], want[2], want[3], want[4], pc, pr, rc, rr, free,
				pcrm.DPOOptions{Beta: 0.1, Reduction: reduction})
			require.NoError(t, err)
			term, err := pcrm.TermLoss(got[0], got[1], got[2], got[3], got[4], pc, pr, rc, rr, zeros,
				pcrm.TermOptions{Beta: 0.1, RewardBeta: 0.1, OffsetScale: 1, Reduction: reduction})
			require.NoError(t, err)
			assert.Equal(t, loss, term)
			assert.Equal(t, want, got)
		}
	}
}

// The pair form in float64, pair by pair, against RewardLoss.
func TestTermLossOfScores(t *testing.T) {
	for _, tier := range tiers() {
		forceTier(t, tier)
		n := 200
		chosen, rejected, _ := batch(n)
		free := slices.Repeat([]float64{inf}, n)
		var got, want [3][]float64
		for i := range got {
			got[i], want[i] = make([]float64, n), make([]float64, n)
		}
		_, err := pcrm.RewardLoss(want[0], want[1], want[2], chosen, rejected, free, pcrm.RewardOptions{Reduction: pcrm.None})
		require.NoError(t, err)
		_, err = pcrm.TermLoss(got[0], got[1], got[2], nil, nil, chosen, rejected, nil, nil, make([]float64, n),
			pcrm.TermOptions{Beta: 1, OffsetScale: 1, Reduction: pcrm.None})
		require.NoError(t, err)
		assert.Equal(t, want, got, tier)
	}
}

// The same bits with any number of threads.
func TestTermLossThreads(t *testing.T) {
	n := 1 << 17
	x, offset := termBatch(n)
	t.Cleanup(func() { pcrm.SetNumThreads(0) })
	for _, term := range terms {
		var results []string
		for _, threads := range []int{1, 4} {
			pcrm.SetNumThreads(threads)
			grad, other := make([]float64, n), make([]float64, n)
			loss, err := pcrm.TermLoss(nil, grad, other, nil, nil, x[0], x[1], x[2], x[3], offset,
				pcrm.TermOptions{Term: term, Beta: 0.1, OffsetScale: 1})
			require.NoError(t, err)
			results = append(results, fmt.Sprint(loss, grad[0], grad[n-1], other[n/2]))
		}
		assert.Equal(t, results[0], results[1])
	}
}

func TestTermLossErrors(t *testing.T) {
	one, two := []float64{1}, []float64{1, 2}
	ok := pcrm.TermOptions{Beta: 1, OffsetScale: 1}
	for _, c := range []struct {
		message           string
		losses, grad, rew []float64
		w, l, rc, rr, x   []float64
		o                 pcrm.TermOptions
	}{
		{message: "chosen is empty, must be at least one score", o: ok},
		{message: "term is 4, must be OffsetTerm, SquaredTerm, ForwardKLTerm or BackwardKLTerm", o: pcrm.TermOptions{Term: 4}},
		{message: "beta is 0, must be greater than 0 and finite", w: one},
		{message: "reward beta is +Inf, must be finite", o: pcrm.TermOptions{Beta: 1, RewardBeta: inf}},
		{message: "offset scale is NaN, must be finite", o: pcrm.TermOptions{Beta: 1, OffsetScale: math.NaN()}},
		{message: "coefficient is -1, must be at least 0 and finite", o: pcrm.TermOptions{Beta: 1, L2: -1}},
		{message: "reduction is 3, must be Mean, Sum or None", o: pcrm.TermOptions{Beta: 1, Reduction: 3}},
		{message: "rejected has 1 elements, chosen has 2", w: two, l: one, o: ok},
		{message: "referenceRejected has 0 elements, chosen has 2", w: two, l: two, rc: two, o: ok},
		{message: "offset has 1 elements, chosen has 2", w: two, l: two, x: one, o: ok},
		{message: "losses has 0 elements, chosen has 1", w: one, l: one, x: one, o: pcrm.TermOptions{Beta: 1, Reduction: pcrm.None}},
		{message: "gradRejected has 0 elements, chosen has 1", w: one, l: one, x: one, grad: one, o: ok},
		{message: "chosenRewards has 2 elements, chosen has 1", w: one, l: one, x: one, rew: two, o: ok},
		{message: "offset[1] is NaN, must be finite", w: two, l: two, x: []float64{0, math.NaN()}, o: ok},
		{message: "offset[0] is -Inf, must be finite", w: one, l: one, x: []float64{-inf}, o: ok},
		{message: "offset[0] is 1e+300, must be finite", w: one, l: one, x: []float64{1e300}, o: pcrm.TermOptions{Beta: 1, OffsetScale: 1e300}},
	} {
		_, err := pcrm.TermLoss(c.losses, c.grad, nil, c.rew, nil, c.w, c.l, c.rc, c.rr, c.x, c.o)
		assert.EqualError(t, err, c.message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
}

func TestTermLossAllocatesNothing(t *testing.T) {
	x, offset := termBatch(100)
	grad, other := make([]float64, 100), make([]float64, 100)
	for _, term := range terms {
		assert.Zero(t, testing.AllocsPerRun(100, func() {
			_, _ = pcrm.TermLoss(nil, grad, other, nil, nil, x[0], x[1], x[2], x[3], offset,
				pcrm.TermOptions{Term: term, Beta: 0.1, OffsetScale: 1})
		}))
	}
}
