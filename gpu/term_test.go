//go:build cgo && linux

package gpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
)

var terms = []pcrm.Term{pcrm.OffsetTerm, pcrm.SquaredTerm, pcrm.ForwardKLTerm, pcrm.BackwardKLTerm}

// termOf runs the kernel; without references the scores are a reward model's.
func termOf[F pcrm.Float](t testing.TB, d *Device, columns [4][]F, offset []F, references bool, o pcrm.TermOptions) result {
	t.Helper()
	n := len(offset)
	return run[F](t, n, n, o.Reduction, func(b Batch, chosenRewards, rejectedRewards uintptr) error {
		b.Chosen, b.Rejected, b.Delta = strided(columns[0]), strided(columns[1]), strided(offset)
		k := Terms{Term: o.Term, Beta: o.Beta, RewardBeta: o.RewardBeta, OffsetScale: o.OffsetScale, L2: o.L2}
		if references {
			k.ReferenceChosen, k.ReferenceRejected = strided(columns[2]), strided(columns[3])
			k.ChosenRewards, k.RejectedRewards = chosenRewards, rejectedRewards
		}
		return d.TermLoss(0, dtypeOf[F](), b, k)
	})
}

// Against the Go core in float64, for scores of which no product is rounded: see precision for
// the losses' own roundings. A divergence is a difference of numbers up to |m|+|x|.
func TestTerm(t *testing.T) {
	t.Run("float64", testTerm[float64])
	t.Run("float32", testTerm[float32])
}

func testTerm[F pcrm.Float](t *testing.T) {
	d := device(t, 0)
	r := rand.New(rand.NewPCG(11, 12))
	sixtyFourths := func(n int, most float64) []F {
		x := make([]F, n)
		for i := range x {
			x[i] = F(math.Round(64*most*(2*r.Float64()-1)) / 64)
		}
		return x
	}
	for _, n := range []int{1, 100, 4099} {
		var columns [4][]F
		for i := range columns {
			columns[i] = sixtyFourths(n, 32)
		}
		offset := sixtyFourths(n, 8)
		for _, term := range terms {
			for _, references := range []bool{true, false} {
				o := pcrm.TermOptions{Term: term, Beta: 0.25, RewardBeta: 0.5, OffsetScale: -2, L2: 0.125, Reduction: pcrm.None}
				got := termOf(t, d, columns, offset, references, o)
				var exact [5][]float64
				for i := range exact {
					exact[i] = slices.Repeat([]float64{guard}, n)
				}
				refW, refL := wide(columns[2]), wide(columns[3])
				rewards := [2][]float64{exact[3], exact[4]}
				if !references {
					refW, refL, rewards = nil, nil, [2][]float64{}
				}
				_, err := pcrm.TermLoss(exact[0], exact[1], exact[2], rewards[0], rewards[1], wide(columns[0]), wide(columns[1]),
					refW, refL, wide(offset), o)
				require.NoError(t, err)
				eps := precision[F]()
				for i := range n {
					say := fmt.Sprintf("term %d, references %v, pair %d", term, references, i)
					assert.InDelta(t, exact[0][i], got.losses[i], 10*eps*(1+16+16+exact[0][i]), say)
					// By beta, of a number up to 1 or, of forward KL, 32 and, squared, 2*32, and the pull 2*c*16.
					assert.InDelta(t, exact[1][i], got.gradChosen[i], 0.25*10*eps*(64+4), "by chosen: "+say)
					assert.InDelta(t, exact[2][i], got.gradRejected[i], 0.25*10*eps*(64+4), "by rejected: "+say)
					if references {
						assert.Equal(t, exact[3][i], got.chosenRewards[i], say)
						assert.Equal(t, exact[4][i], got.rejectedRewards[i], say)
					} else {
						assert.Equal(t, float64(F(guard)), got.chosenRewards[i], "no rewards, no write: "+say)
					}
				}
				total := 0.0
				for _, l := range got.losses {
					total += l
				}
				o.Reduction = pcrm.Mean
				mean := termOf(t, d, columns, offset, references, o)
				// Each loss was rounded when it was written, their sum is once; n roundings in float64.
				assert.InEpsilon(t, total/float64(n), mean.losses[0], 2*eps+float64(n)*0x1p-53, "term %d, n %d", term, n)
				for i := range n {
					assert.InDelta(t, got.gradChosen[i]/float64(n), mean.gradChosen[i], 2*eps*math.Abs(got.gradChosen[i])/float64(n))
				}
			}
		}
	}
}

// NaN, infinities and numbers of any size give what pcrm.Term says.
func TestTermExtremes(t *testing.T) {
	t.Run("float64", testTermExtremes[float64])
	t.Run("float32", testTermExtremes[float32])
}

func testTermExtremes[F pcrm.Float](t *testing.T) {
	d := device(t, 0)
	var columns [4][]F
	var offset []F
	for _, m := range extremes {
		for _, x := range extremes {
			if !math.IsInf(x, 0) && math.Abs(x) < 1e30 { // offsets are finite, and differences too
				columns[0], columns[1], offset = append(columns[0], F(m)), append(columns[1], 0), append(offset, F(x))
			}
		}
	}
	eps := precision[F]()
	// Beyond these a coin has but one side: sigmoid(-88) and sigmoid(-745) are the last of their types.
	last := map[bool]float64{true: 87, false: 744}[eps > 0x1p-30]
	for _, term := range terms {
		got := termOf(t, d, columns, offset, false, pcrm.TermOptions{Term: term, Beta: 1, OffsetScale: 1, Reduction: pcrm.None})
		for i := range offset {
			m, x := float64(columns[0][i]), float64(offset[i])
			if term >= pcrm.ForwardKLTerm && (math.Abs(x) > last && math.Abs(m) > last) {
				continue
			}
			loss, grad := term.Loss(m, x)
			say := fmt.Sprintf("term %d, m %v, x %v", term, m, x)
			size := math.Abs(loss)
			if math.IsInf(m, 0) {
				size = 0
			} else {
				size += math.Abs(m) + math.Abs(x)
			}
			same(t, loss, got.losses[i], 10*eps*(1+size), "loss: "+say, float64(maxOf[F]()))
			slope := 1.0
			if term == pcrm.SquaredTerm || term == pcrm.ForwardKLTerm {
				slope += math.Abs(grad)
			}
			if term == pcrm.OffsetTerm && !math.IsInf(m, 0) {
				// m-x is rounded: by eps of it, and |d| exp(-|d|) <= 1/e, of its terms' where they cancel.
				slope++
			}
			same(t, grad, got.gradChosen[i], 11*eps*slope, "gradient: "+say, float64(maxOf[F]()))
		}
	}
}

// An offset of 0 is DPO and Bradley-Terry, bit for bit.
func TestTermWithoutOffset(t *testing.T) {
	d := device(t, 0)
	r := rand.New(rand.NewPCG(13, 14))
	const n = 5000
	var columns [4][]float32
	for i := range columns {
		columns[i] = to[float32](randoms(r, n, 30))
	}
	free, zeros := slices.Repeat([]float32{float32(math.Inf(1))}, n), make([]float32, n)
	for _, reduction := range []pcrm.Reduction{pcrm.Mean, pcrm.None} {
		want := run[float32](t, n, n, reduction, func(b Batch, chosenRewards, rejectedRewards uintptr) error {
			b.Chosen, b.Rejected, b.Delta = strided(columns[0]), strided(columns[1]), strided(free)
			return d.DPOLoss(0, Float32, b, strided(columns[2]), strided(columns[3]), chosenRewards, rejectedRewards, 0.1)
		})
		o := pcrm.TermOptions{Beta: 0.1, RewardBeta: 0.1, OffsetScale: 1, Reduction: reduction}
		assert.Equal(t, want, termOf(t, d, columns, zeros, true, o))
		want = reward(t, d, columns[0], columns[1], free, 0, 0, reduction)
		o.Beta = 1
		assert.Equal(t, want, termOf(t, d, columns, zeros, false, o))
	}
}

func TestTermErrors(t *testing.T) {
	d := device(t, 0)
	x := []float32{1}
	good := Batch{Rows: 1, Loss: 8, Partials: 8, Chosen: strided(x), Rejected: strided(x), Delta: strided(x)}
	for want, k := range map[string]Terms{
		"term is -1, must be OffsetTerm, SquaredTerm, ForwardKLTerm or BackwardKLTerm": {Term: -1, Beta: 1},
		"beta is 0, must be greater than 0 and finite":                                 {},
		"offset scale is +Inf, must be finite":                                         {Beta: 1, OffsetScale: math.Inf(1)},
		"coefficient is -1, must be at least 0 and finite":                             {Beta: 1, L2: -1},
		"references and rewards must all be given or all be 0":                         {Beta: 1, ReferenceChosen: strided(x)},
	} {
		err := d.TermLoss(0, Float32, good, k)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument, want)
		assert.EqualError(t, err, want)
	}
	good.Rows = 0
	assert.EqualError(t, d.TermLoss(0, Float32, good, Terms{Beta: 1}), "chosen_rewards are empty, must be at least one score")
}
