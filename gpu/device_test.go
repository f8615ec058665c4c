//go:build cgo && linux

package gpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/pcrmtest"
)

// The tests run in a child process, whose libcuda.so.1 is that of testdata/fakecuda. Its device memory is
// Go's memory, and it runs the code of kernels.cu.
const fakeVariable = "PCRM_TEST_FAKECUDA"

var noFake string // why there is no fake driver

func TestMain(m *testing.M) {
	if os.Getenv(fakeVariable) != "" {
		// Compare with the plain loop, not with SIMD kernels, which have their own errors.
		if err := pcrm.SetTier("scalar"); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	folder, err := os.MkdirTemp("", "fakecuda")
	if err == nil {
		err = buildFake(folder)
	}
	status := 0
	if err != nil {
		noFake = err.Error()
		status = m.Run()
	} else {
		status = again(os.Args[1:], folder)
	}
	os.RemoveAll(folder)
	os.Exit(status)
}

func buildFake(folder string, flags ...string) error {
	compiler, err := exec.LookPath("c++")
	if err != nil {
		return fmt.Errorf("the fake CUDA driver needs a C++ compiler: %w", err)
	}
	flags = append(flags, "-O2", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
		"-o", filepath.Join(folder, "libcuda.so.1"), "testdata/fakecuda/fakecuda.cpp")
	if output, err := exec.Command(compiler, flags...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", compiler, err, output)
	}
	return nil
}

// command runs this test program again, with the fake driver of a folder, or without one if folder
// is empty.
func command(arguments []string, folder string, variables ...string) *exec.Cmd {
	c := exec.Command(os.Args[0], arguments...)
	c.Env = append(os.Environ(), append(variables, fakeVariable+"="+folder, "LD_LIBRARY_PATH="+folder)...)
	return c
}

func again(arguments []string, folder string, variables ...string) int {
	c := command(arguments, folder, variables...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func device(t testing.TB, index int) *Device {
	if noFake != "" {
		t.Skip(noFake)
	}
	d, err := Open(index)
	require.NoError(t, err)
	kept = nil
	// Go reruns a test if a file that it read has changed.
	for _, source := range []string{"kernels.cu", "kernels.h", "pcrm_math.h", "testdata/fakecuda/fakecuda.cpp"} {
		_, err := os.Stat(source)
		require.NoError(t, err)
	}
	return d
}

// calls returns the calls of the driver that f makes, one per line.
func calls(t *testing.T, f func()) []string {
	log := filepath.Join(t.TempDir(), "log")
	t.Setenv("FAKECUDA_LOG", log)
	f()
	require.NoError(t, os.Unsetenv("FAKECUDA_LOG"))
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(text)), "\n")
}

const guard = 12345.678

// zone is the number of guards on each side of device memory.
const zone = 16

// memory is device memory between guards.
type memory[T comparable] struct{ all, values []T }

func allocate[T comparable](n int, fill T) memory[T] {
	all := slices.Repeat([]T{fill}, n+2*zone)
	return memory[T]{all, all[zone : zone+n]}
}

func (m memory[T]) address() uintptr { return addressOf(m.values) }

func (m memory[T]) intact() bool {
	for i := range zone {
		if m.all[i] != m.all[0] || m.all[len(m.all)-1-i] != m.all[0] {
			return false
		}
	}
	return true
}

// kept holds memory whose address tests use, because an address alone does not keep it alive.
var kept []any

func addressOf[T any](s []T) uintptr {
	kept = append(kept, s)
	return uintptr(unsafe.Pointer(unsafe.SliceData(s)))
}

func strided[T any](s []T) Strided { return Strided{addressOf(s), 1} }

func to[F pcrm.Float](x []float64) []F {
	y := make([]F, len(x))
	for i, v := range x {
		y[i] = F(v)
	}
	return y
}

func dtypeOf[F pcrm.Float]() Dtype {
	if unsafe.Sizeof(F(0)) == 4 {
		return Float32
	}
	return Float64
}

// result holds the outputs of a launch.
type result struct {
	losses, gradChosen, gradRejected, chosenRewards, rejectedRewards []float64
}

func wide[F pcrm.Float](x []F) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

// run launches with guarded memory for n scores in the given number of rows, and returns the outputs.
func run[F pcrm.Float](t testing.TB, rows, n int, r pcrm.Reduction, launch func(b Batch, chosenRewards, rejectedRewards uintptr) error) result {
	t.Helper()
	losses := allocate(1, F(guard))
	if r == pcrm.None {
		losses = allocate(rows, F(guard))
	}
	gradChosen, gradRejected := allocate(n, F(guard)), allocate(n, F(guard))
	chosenRewards, rejectedRewards := allocate(rows, F(guard)), allocate(rows, F(guard))
	partials := allocate(Partials, guard)
	b := Batch{Rows: int64(rows), Loss: losses.address(), GradChosen: gradChosen.address(), GradRejected: gradRejected.address(),
		Partials: partials.address(), Reduction: r}
	require.NoError(t, launch(b, chosenRewards.address(), rejectedRewards.address()))
	require.True(t, losses.intact() && gradChosen.intact() && gradRejected.intact() && partials.intact() &&
		chosenRewards.intact() && rejectedRewards.intact(), "a kernel wrote outside of its memory")
	return result{wide(losses.values), wide(gradChosen.values), wide(gradRejected.values), wide(chosenRewards.values), wide(rejectedRewards.values)}
}

func reward[F pcrm.Float](t testing.TB, d *Device, chosen, rejected, delta []F, smoothing, center float64, r pcrm.Reduction) result {
	t.Helper()
	return run[F](t, len(chosen), len(chosen), r, func(b Batch, _, _ uintptr) error {
		b.Chosen, b.Rejected, b.Delta, b.LabelSmoothing = strided(chosen), strided(rejected), strided(delta), smoothing
		return d.RewardLoss(0, dtypeOf[F](), b, center)
	})
}

// The loss against the properties that define it and against golden vectors, in both precisions.
func TestProperties(t *testing.T) {
	d := device(t, 0)
	batch := func(single bool) pcrmtest.Batch {
		return func(chosen, rejected, delta []float64) (float64, []float64, []float64, error) {
			r := result{}
			if single {
				r = reward(t, d, to[float32](chosen), to[float32](rejected), to[float32](delta), 0, 0, pcrm.Mean)
			} else {
				r = reward(t, d, chosen, rejected, delta, 0, 0, pcrm.Mean)
			}
			return r.losses[0], r.gradChosen, r.gradRejected, nil
		}
	}
	pair := func(single bool, smoothing float64) pcrmtest.Pair {
		return func(margin, delta float64) (float64, float64) {
			r := result{}
			if single {
				r = reward(t, d, []float32{float32(margin)}, []float32{0}, []float32{float32(delta)}, smoothing, 0, pcrm.None)
			} else {
				r = reward(t, d, []float64{margin}, []float64{0}, []float64{delta}, smoothing, 0, pcrm.None)
			}
			return r.losses[0], r.gradChosen[0]
		}
	}
	pcrmtest.CheckBatch(t, batch(false))
	pcrmtest.CheckBatch(t, batch(true), pcrmtest.Float32())
	for _, e := range []float64{0, 0.1} {
		pcrmtest.Golden(t, pair(false, e), pcrmtest.LabelSmoothing(e))
		pcrmtest.Golden(t, pair(true, e), pcrmtest.LabelSmoothing(e), pcrmtest.Float32())
		pcrmtest.Check(t, pair(false, e), pcrmtest.LabelSmoothing(e))
		pcrmtest.Check(t, pair(true, e), pcrmtest.LabelSmoothing(e), pcrmtest.Float32())
	}
}

// precision holds eps, the error of one rounding. For the same numbers, the device differs from Go's
// float64 by fewer than 10 roundings: one each for the margin and m-delta, up to 2 ulp for exp and log1p
// on a GPU, and half an ulp for sums and products. So a loss L may differ by
// 10 eps (1 + |m| + |m-delta| + |L|), and a gradient, a difference of numbers up to 1, by 10 eps.
func precision[F pcrm.Float]() float64 {
	if unsafe.Sizeof(F(0)) == 4 {
		return 0x1p-24
	}
	return 0x1p-53
}

// checkPair compares the loss and gradient of one pair with pcrm.PairLoss.
func checkPair[F pcrm.Float](t testing.TB, chosen, rejected, delta F, smoothing, center, loss, byChosen, byRejected float64) {
	t.Helper()
	// The margin as computed on the device, rounded to its type.
	w, l, m, eps := float64(chosen), float64(rejected), float64(chosen-rejected), precision[F]()
	wantLoss, g := pcrm.PairLoss(m, float64(delta), smoothing)
	pull := 0.0
	if center != 0 {
		wantLoss += center * (w + l) * (w + l)
		pull = 2 * center * (w + l)
	}
	over := 0.0
	if !math.IsInf(float64(delta), 1) {
		over = math.Abs(m - float64(delta))
	}
	say := fmt.Sprintf("chosen %v, rejected %v, delta %v, smoothing %v, center %v", chosen, rejected, delta, smoothing, center)
	same(t, wantLoss, loss, 10*eps*(1+math.Abs(m)+over+math.Abs(wantLoss)), "loss: "+say, float64(maxOf[F]()))
	// The rounding error of m-delta is at most eps |m-delta|, and |x| exp(-|x|) <= 1/e bounds its
	// effect on a sigmoid.
	tolerance := 11*eps + 3*eps*math.Abs(pull)
	same(t, g+pull, byChosen, tolerance, "gradient by chosen: "+say, float64(maxOf[F]()))
	same(t, pull-g, byRejected, tolerance, "gradient by rejected: "+say, float64(maxOf[F]()))
}

func maxOf[F pcrm.Float]() float64 {
	if unsafe.Sizeof(F(0)) == 4 {
		return math.MaxFloat32
	}
	return math.MaxFloat64
}

// same checks that NaN matches NaN, that infinity matches infinity and values beyond the type, and that
// other numbers are within the tolerance.
func same(t testing.TB, want, got, tolerance float64, say string, most float64) {
	t.Helper()
	switch {
	case math.IsNaN(want):
		assert.True(t, math.IsNaN(got), "%s: got %v, want NaN", say, got)
	case math.Abs(want) >= most:
		assert.True(t, math.Abs(got) >= most*(1-1e-6) && math.Signbit(got) == math.Signbit(want), "%s: got %v, want %v", say, got, want)
	default:
		assert.True(t, math.Abs(got-want) <= tolerance, "%s: got %v, want %v (tolerance %.2g)", say, got, want, tolerance)
	}
}

var extremes = []float64{0, 1e-30, -1e-30, 88, -88, 104, -104, 745, -745, 1e4, -1e4, 1e30, -1e30, 1e-40, -1e-40, 0.17,
	16777216, 1, 2, 3e37, -3e37, math.Inf(1), math.Inf(-1), math.NaN()}

func testExtremes[F pcrm.Float](t *testing.T) {
	d := device(t, 0)
	var chosen, rejected, delta []F
	for _, w := range extremes {
		for _, l := range extremes {
			for _, c := range extremes {
				if c > 0 || math.IsNaN(c) {
					chosen, rejected, delta = append(chosen, F(w)), append(rejected, F(l)), append(delta, F(c))
				}
			}
		}
	}
	for _, o := range [][2]float64{{0, 0}, {0.1, 0}, {0, 0.01}} {
		r := reward(t, d, chosen, rejected, delta, o[0], o[1], pcrm.None)
		for i := range chosen {
			checkPair(t, chosen[i], rejected[i], delta[i], o[0], o[1], r.losses[i], r.gradChosen[i], r.gradRejected[i])
		}
	}
}

func TestExtremes(t *testing.T) {
	t.Run("float64", testExtremes[float64])
	t.Run("float32", testExtremes[float32])
}

func randoms(r *rand.Rand, n int, scale float64) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = float64(float32(scale * r.NormFloat64()))
	}
	return x
}

func constraints(r *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		if x[i] = float64(float32(0.1 + 9*r.Float64())); r.IntN(4) == 0 {
			x[i] = math.Inf(1)
		}
	}
	return x
}

// Every number of blocks, and of threads in the last block, with each reduction.
func testSizes[F pcrm.Float](t *testing.T) {
	d := device(t, 0)
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 31, 32, 33, 1023, 1024, 1025, 4095, 4096, 4097, 5121, 1 << 15} {
		chosen, rejected, delta := to[F](randoms(r, n, 3)), to[F](randoms(r, n, 3)), to[F](constraints(r, n))
		each := reward(t, d, chosen, rejected, delta, 0.1, 0.01, pcrm.None)
		total := 0.0
		for i := range n {
			checkPair(t, chosen[i], rejected[i], delta[i], 0.1, 0.01, each.losses[i], each.gradChosen[i], each.gradRejected[i])
			total += each.losses[i]
		}
		eps := precision[F]()
		for reduction, scale := range map[pcrm.Reduction]float64{pcrm.Mean: 1 / float64(n), pcrm.Sum: 1} {
			got := reward(t, d, chosen, rejected, delta, 0.1, 0.01, reduction)
			// Each loss is rounded when written, the sum is rounded once, and there are n roundings in float64.
			assert.InEpsilon(t, total*scale, got.losses[0], 2*eps+float64(n)*0x1p-53, "n %d", n)
			for i := range n {
				assert.InDelta(t, each.gradChosen[i]*scale, got.gradChosen[i], 2*eps*scale*math.Abs(each.gradChosen[i]), "n %d, %d", n, i)
			}
			again := reward(t, d, chosen, rejected, delta, 0.1, 0.01, reduction)
			assert.Equal(t, got, again, "the same bits at each call")
		}
	}
}

func TestSizes(t *testing.T) {
	t.Run("float64", testSizes[float64])
	t.Run("float32", testSizes[float32])
}

func TestDPO(t *testing.T) {
	t.Run("float64", testDPO[float64])
	t.Run("float32", testDPO[float32])
}

func testDPO[F pcrm.Float](t *testing.T) {
	d := device(t, 0)
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{1, 100, 4099} {
		var columns [4][]F
		for i := range columns {
			columns[i] = to[F](randoms(r, n, 30))
		}
		delta := to[F](constraints(r, n))
		const beta, smoothing = 0.1, 0.1
		got := run[F](t, n, n, pcrm.None, func(b Batch, chosenRewards, rejectedRewards uintptr) error {
			b.Chosen, b.Rejected, b.Delta, b.LabelSmoothing = strided(columns[0]), strided(columns[1]), strided(delta), smoothing
			return d.DPOLoss(0, dtypeOf[F](), b, strided(columns[2]), strided(columns[3]), chosenRewards, rejectedRewards, beta)
		})
		// Go's results in float64 for the same numbers.
		var exact [5][]float64
		for i := range exact {
			exact[i] = make([]float64, n)
		}
		_, err := pcrm.DPOLoss(exact[0], exact[1], exact[2], exact[3], exact[4], wide(columns[0]), wide(columns[1]), wide(columns[2]),
			wide(columns[3]), wide(delta), pcrm.DPOOptions{Beta: beta, LabelSmoothing: smoothing, Reduction: pcrm.None})
		require.NoError(t, err)
		eps := precision[F]()
		for i := range n {
			// The difference of differences is rounded three times, beta and the product once. This is
			// an error of the argument, and the loss changes by at most as much.
			argument := 4 * eps * (math.Abs(exact[3][i]) + math.Abs(exact[4][i]))
			m := exact[3][i] - exact[4][i]
			assert.InDelta(t, exact[0][i], got.losses[i], argument+10*eps*(1+2*math.Abs(m)+math.Abs(exact[0][i])+finiteOr0(delta[i])), "loss %d", i)
			assert.InDelta(t, exact[1][i], got.gradChosen[i], beta*(argument/4+12*eps), "by chosen %d", i)
			assert.InDelta(t, exact[2][i], got.gradRejected[i], beta*(argument/4+12*eps), "by rejected %d", i)
			assert.InDelta(t, exact[3][i], got.chosenRewards[i], 3*eps*math.Abs(exact[3][i]), "chosen reward %d", i)
			assert.InDelta(t, exact[4][i], got.rejectedRewards[i], 3*eps*math.Abs(exact[4][i]), "rejected reward %d", i)
		}
	}
}

func finiteOr0[F pcrm.Float](x F) float64 {
	if math.IsInf(float64(x), 1) {
		return 0
	}
	return float64(x)
}

// tokenRows returns rows of ids of all kinds: with a common prompt that may contain the padding id, a
// first difference anywhere, responses of any length, and without a difference.
func tokenRows(r *rand.Rand, rows, width int) (chosen, rejected []int64) {
	for range rows {
		w, l := make([]int64, width), make([]int64, width)
		prompt := r.IntN(width + 1)
		for i := range width {
			w[i] = int64(r.IntN(6)) // 0 is the padding id
			if l[i] = w[i]; i >= prompt {
				l[i] = int64(r.IntN(6))
			}
		}
		for _, row := range [][]int64{w, l} {
			for i := prompt + r.IntN(width-prompt+1); i < width; i++ {
				row[i] = 0
			}
		}
		chosen, rejected = append(chosen, w...), append(rejected, l...)
	}
	return chosen, rejected
}

func TestToken(t *testing.T) {
	t.Run("float64", testToken[float64])
	t.Run("float32", testToken[float32])
}

func testToken[F pcrm.Float](t *testing.T) {
	d := device(t, 0)
	r := rand.New(rand.NewPCG(5, 6))
	for _, shape := range [][2]int{{1, 1}, {5, 2}, {50, 7}, {7, 33}, {3, 1024}, {2, 5000}, {300, 40}, {1100, 3}} {
		rows, width := shape[0], shape[1]
		for _, short := range []bool{false, true} {
			ids, otherIDs := tokenRows(r, rows, width)
			chosen, rejected, delta := to[F](randoms(r, rows*width, 3)), to[F](randoms(r, rows*width, 3)), to[F](constraints(r, rows))
			for i := range rows { // values outside the span are ignored
				start, end := pcrm.Span(ids[i*width:(i+1)*width], otherIDs[i*width:(i+1)*width], 0)
				for j := range width {
					if j < start || j >= end {
						chosen[i*width+j] = F(math.NaN())
					}
				}
			}
			tokens := Tokens{Width: int64(width), ChosenStep: 1, RejectedStep: 1,
				ChosenIDs:   IDs{addressOf(ids), 8, int64(width), 1},
				RejectedIDs: IDs{addressOf(otherIDs), 8, int64(width), 1}}
			narrow := make([]int32, len(ids))
			if short { // one of the two has int32
				for i, id := range ids {
					narrow[i] = int32(id)
				}
				tokens.ChosenIDs = IDs{addressOf(narrow), 4, int64(width), 1}
			}
			compute := func(reduction pcrm.Reduction) result {
				return run[F](t, rows, rows*width, reduction, func(b Batch, _, _ uintptr) error {
					b.Chosen, b.Rejected, b.Delta = Strided{addressOf(chosen), int64(width)}, Strided{addressOf(rejected), int64(width)}, strided(delta)
					return d.TokenLoss(0, dtypeOf[F](), b, tokens)
				})
			}
			got := compute(pcrm.None)
			losses, gradChosen, gradRejected := make([]float64, rows), make([]float64, rows*width), make([]float64, rows*width)
			total, err := pcrm.TokenLoss(losses, gradChosen, gradRejected, wide(chosen), wide(rejected), ids, otherIDs, wide(delta), 0,
				pcrm.RewardOptions{Reduction: pcrm.None})
			require.NoError(t, err)
			eps := precision[F]()
			for i := range rows {
				// Margins and delta are at most 30 here; see precision.
				assert.InDelta(t, losses[i], got.losses[i], 10*eps*(1+80+losses[i]), "shape %v, row %d", shape, i)
			}
			for i := range gradChosen {
				assert.InDelta(t, gradChosen[i], got.gradChosen[i], 12*eps, "shape %v, element %d", shape, i)
				assert.InDelta(t, gradRejected[i], got.gradRejected[i], 12*eps, "shape %v, element %d", shape, i)
				assert.True(t, gradChosen[i] != 0 || got.gradChosen[i] == 0, "outside of the span: element %d", i)
			}
			mean := compute(pcrm.Mean)
			assert.InDelta(t, total/float64(rows), mean.losses[0], 10*eps*(1+80+total/float64(rows)), "shape %v", shape)
			for i := range gradChosen {
				assert.InDelta(t, got.gradChosen[i]/float64(rows), mean.gradChosen[i], 4*eps/float64(rows), "shape %v, element %d", shape, i)
			}
		}
	}
}

// The ends of the two responses are far apart, and neither is followed by padding.
func TestFarEnds(t *testing.T) {
	d := device(t, 0)
	const width = 9000
	for _, swap := range []bool{false, true} {
		ids, otherIDs := slices.Repeat([]int64{1}, width), slices.Repeat([]int64{1}, width)
		ids[5], ids[10], otherIDs[width-20] = 2, 0, 0
		if swap {
			ids, otherIDs = otherIDs, ids
		}
		scores, delta := make([]float64, width), []float64{4.5}
		got := run[float64](t, 1, width, pcrm.Mean, func(b Batch, _, _ uintptr) error {
			b.Chosen, b.Rejected, b.Delta = Strided{addressOf(scores), width}, Strided{addressOf(scores), width}, strided(delta)
			return d.TokenLoss(0, Float64, b, Tokens{Width: width, ChosenStep: 1, RejectedStep: 1,
				ChosenIDs: IDs{addressOf(ids), 8, width, 1}, RejectedIDs: IDs{addressOf(otherIDs), 8, width, 1}})
		})
		for i, g := range got.gradChosen {
			require.Equal(t, i >= 5 && i < width-20, g != 0, "position %d", i)
		}
	}
}

// Inputs that are a view of a larger array, transposed, or one number for all rows.
func TestStrides(t *testing.T) {
	d := device(t, 0)
	r := rand.New(rand.NewPCG(7, 8))
	const n = 100
	chosen, rejected, delta := randoms(r, n, 3), randoms(r, n, 3), []float64{4.5}
	spread := func(x []float64, stride int) []float64 {
		y := slices.Repeat([]float64{math.NaN()}, len(x)*stride)
		for i, v := range x {
			y[i*stride] = v
		}
		return y
	}
	want := reward(t, d, chosen, rejected, slices.Repeat(delta, n), 0, 0, pcrm.Mean)
	wide, wider := spread(chosen, 3), spread(rejected, 7)
	got := run[float64](t, n, n, pcrm.Mean, func(b Batch, _, _ uintptr) error {
		b.Chosen, b.Rejected, b.Delta = Strided{addressOf(wide), 3}, Strided{addressOf(wider), 7}, Strided{addressOf(delta), 0}
		return d.RewardLoss(0, Float64, b, 0)
	})
	assert.Equal(t, want, got)

	rows, width := 5, 20
	ids, otherIDs := tokenRows(r, rows, width)
	columns := func(x []int64) []int64 {
		y := make([]int64, len(x))
		for i, v := range x {
			y[i%width*rows+i/width] = v
		}
		return y
	}
	tokens := func(a, b []int64, stride, step int64) Tokens {
		return Tokens{Width: int64(width), ChosenStep: 1, RejectedStep: 0,
			ChosenIDs: IDs{addressOf(a), 8, stride, step}, RejectedIDs: IDs{addressOf(b), 8, stride, step}}
	}
	compute := func(tok Tokens) result {
		return run[float64](t, rows, rows*width, pcrm.Mean, func(b Batch, _, _ uintptr) error {
			// One score per row for rejected: its step is 0.
			b.Chosen, b.Rejected, b.Delta = Strided{addressOf(chosen), int64(width)}, Strided{addressOf(rejected), 1}, Strided{addressOf(delta), 0}
			return d.TokenLoss(0, Float64, b, tok)
		})
	}
	byColumn, otherByColumn := columns(ids), columns(otherIDs)
	assert.Equal(t, compute(tokens(ids, otherIDs, int64(width), 1)), compute(tokens(byColumn, otherByColumn, 1, int64(rows))))
}

// The 16-bit types: reading every value, and writing compared with float64.
func TestHalfTypes(t *testing.T) {
	d := device(t, 0)
	const n = 1 << 16
	bits := make([]uint16, n)
	for i := range bits {
		bits[i] = uint16(i)
	}
	zeros, delta := make([]uint16, n), slices.Repeat([]float32{1}, n)
	for _, half := range []struct {
		dtype                Dtype
		fraction, bias, most int // the bits of the fraction, and the bias and maximum of the exponent
	}{{BFloat16, 7, 127, 255}, {Float16, 10, 15, 31}} {
		value := func(b uint16) float64 {
			exponent, fraction := int(b)>>half.fraction&half.most, float64(int(b)&(1<<half.fraction-1))/float64(int(1)<<half.fraction)
			v := 0.0
			switch exponent {
			case half.most:
				if v = math.Inf(1); fraction != 0 {
					v = math.NaN()
				}
			case 0:
				v = math.Ldexp(fraction, 1-half.bias)
			default:
				v = math.Ldexp(1+fraction, exponent-half.bias)
			}
			return v * float64(1-2*int(b>>15))
		}
		// With beta 1 and a reference of 0, the implicit rewards are the values that were read.
		read := run[float32](t, n, n, pcrm.None, func(b Batch, chosenRewards, rejectedRewards uintptr) error {
			b.Chosen, b.Rejected, b.Delta = strided(bits), strided(zeros), strided(delta)
			return d.DPOLoss(0, half.dtype, b, strided(zeros), strided(zeros), chosenRewards, rejectedRewards, 1)
		}).chosenRewards
		for i, x := range read {
			want := value(uint16(i))
			require.True(t, x == want || x != x && want != want, "dtype %v, bits %#x: read %v, want %v", half.dtype, i, x, want)
		}
		// Write each value, the number halfway to the next value, and its neighbors.
		var numbers []float32
		for i := range uint16(1<<15 - 1) {
			a, b := value(i), value(i+1)
			if b-b != 0 { // above the largest, as if the next value were finite
				b = math.Ldexp(1, half.most-half.bias)
			}
			if a-a != 0 {
				numbers = append(numbers, float32(a))
				continue
			}
			middle := float32((a + b) / 2)
			numbers = append(numbers, float32(a), middle, math.Nextafter32(middle, 0), math.Nextafter32(middle, float32(b)))
		}
		numbers = append(numbers, math.MaxFloat32, float32(math.Inf(1)), float32(math.NaN()))
		for _, x := range slices.Clone(numbers) {
			numbers = append(numbers, -x)
		}
		written, other := allocate(len(numbers), uint16(0x1234)), allocate(len(numbers), uint16(0x1234))
		one := []float32{1}
		require.NoError(t, d.Scale(0, half.dtype, int64(len(numbers)), 1, written.address(), other.address(), addressOf(numbers), addressOf(numbers),
			Strided{addressOf(one), 0}))
		require.True(t, written.intact() && other.intact())
		require.Equal(t, written.values, other.values)
		for i, x := range numbers {
			got := value(written.values[i])
			if x != x {
				require.True(t, got != got, "dtype %v: wrote %v for NaN", half.dtype, got)
				continue
			}
			// Round to nearest, ties to even: no neighbor is nearer, and no equally near one is even.
			distance := func(b uint16) float64 {
				v := value(b)
				if math.IsInf(v, 0) { // rounded as if its value were 2^max
					v = math.Copysign(math.Ldexp(1, half.most-half.bias), v)
				}
				return math.Abs(v - float64(x))
			}
			b := written.values[i]
			require.Equal(t, math.Signbit(float64(x)), b>>15 == 1, "dtype %v: %v", half.dtype, x)
			if math.IsInf(float64(x), 0) {
				require.True(t, math.IsInf(got, 0))
				continue
			}
			for _, neighbour := range []uint16{b - 1, b + 1} {
				if v := value(neighbour); neighbour>>15 != b>>15 || v != v {
					continue
				}
				near, far := distance(b), distance(neighbour)
				require.True(t, near < far || near == far && b&1 == 0, "dtype %v: %v became %v", half.dtype, x, got)
			}
		}
	}
}

// A batch of 16-bit scores gives the results of the same numbers in float32, with a gradient in float32.
func TestHalfBatches(t *testing.T) {
	d := device(t, 0)
	r := rand.New(rand.NewPCG(9, 10))
	const n = 5000
	chosen, rejected := make([]uint16, n), make([]uint16, n)
	same, other := make([]float32, n), make([]float32, n)
	for i := range n {
		for _, x := range []struct {
			bits []uint16
			as   []float32
		}{{chosen, same}, {rejected, other}} {
			x.bits[i] = uint16(math.Float32bits(float32(r.NormFloat64())) >> 16)
			x.as[i] = math.Float32frombits(uint32(x.bits[i]) << 16)
		}
	}
	delta := to[float32](constraints(r, n))
	want := reward(t, d, same, other, delta, 0, 0, pcrm.Mean)
	got := run[float32](t, n, n, pcrm.Mean, func(b Batch, _, _ uintptr) error {
		b.Chosen, b.Rejected, b.Delta = strided(chosen), strided(rejected), strided(delta)
		return d.RewardLoss(0, BFloat16, b, 0)
	})
	assert.Equal(t, want, got)

	ids, otherIDs := tokenRows(r, 50, 100)
	token := func(dtype Dtype, chosen, rejected uintptr) result {
		return run[float32](t, 50, n, pcrm.Sum, func(b Batch, _, _ uintptr) error {
			b.Chosen, b.Rejected, b.Delta = Strided{chosen, 100}, Strided{rejected, 100}, strided(delta)
			return d.TokenLoss(0, dtype, b, Tokens{Width: 100, ChosenStep: 1, RejectedStep: 1,
				ChosenIDs: IDs{addressOf(ids), 8, 100, 1}, RejectedIDs: IDs{addressOf(otherIDs), 8, 100, 1}})
		})
	}
	assert.Equal(t, token(Float32, addressOf(same), addressOf(other)), token(BFloat16, addressOf(chosen), addressOf(rejected)))
}

func TestScale(t *testing.T) {
	d := device(t, 0)
	const rows, width = 30, 11
	gradient := slices.Repeat([]float32{2, -3, 0.5}, rows*width/3)
	incoming := make([]float32, 2*rows)
	for i := range incoming {
		incoming[i] = float32(i)
	}
	a, b := allocate(rows*width, float32(guard)), allocate(rows*width, float32(guard))
	require.NoError(t, d.Scale(0, Float32, rows*width, width, a.address(), b.address(), addressOf(gradient), addressOf(gradient), Strided{addressOf(incoming), 2}))
	require.True(t, a.intact() && b.intact())
	for i, g := range gradient {
		require.Equal(t, g*float32(2*(i/width)), a.values[i])
		require.Equal(t, a.values[i], b.values[i])
	}
	// In place, by a scalar.
	twice := []float32{2}
	copy(a.values, gradient)
	copy(b.values, gradient)
	require.NoError(t, d.Scale(0, Float32, rows*width, width, a.address(), b.address(), a.address(), b.address(), Strided{addressOf(twice), 0}))
	for i, g := range gradient {
		require.Equal(t, 2*g, a.values[i])
		require.Equal(t, 2*g, b.values[i])
	}
}

// Without destinations, no gradients are written.
func TestNoGradient(t *testing.T) {
	d := device(t, 0)
	chosen, rejected, delta := []float64{1, 2}, []float64{0, 3}, []float64{4.5, 4.5}
	want := reward(t, d, chosen, rejected, delta, 0, 0, pcrm.Mean)
	got := run[float64](t, 2, 2, pcrm.Mean, func(b Batch, _, _ uintptr) error {
		b.GradChosen, b.GradRejected = 0, 0
		b.Chosen, b.Rejected, b.Delta = strided(chosen), strided(rejected), strided(delta)
		return d.RewardLoss(0, Float64, b, 0)
	})
	assert.Equal(t, want.losses, got.losses)
	assert.Equal(t, []float64{guard, guard, guard, guard}, append(got.gradChosen, got.gradRejected...))
}

// The driver calls of a launch: its own context, the caller's stream, one kernel or two.
func TestLaunches(t *testing.T) {
	d := device(t, 1)
	launch := func(n int, reduction pcrm.Reduction) []string {
		x, delta := make([]float32, n), slices.Repeat([]float32{1}, n)
		return calls(t, func() {
			run[float32](t, n, n, reduction, func(b Batch, _, _ uintptr) error {
				b.Chosen, b.Rejected, b.Delta = strided(x), strided(x), strided(delta)
				return d.RewardLoss(0xabc, Float32, b, 0)
			})
		})
	}
	one := func(kernel string, blocks, threads int) []string {
		return []string{"cuCtxPushCurrent 1",
			fmt.Sprintf("cuLaunchKernel pcrm_%s blocks=%d threads=%d stream=0xabc context=1", kernel, blocks, threads),
			"cuCtxPopCurrent 1"}
	}
	assert.Equal(t, one("pair_float32", 1, 32), launch(8, pcrm.Mean))
	assert.Equal(t, one("pair_float32", 1, 1024), launch(4096, pcrm.Sum))
	assert.Equal(t, append(one("pair_float32", 5, 256), one("sum_float32", 1, 32)...), launch(4097, pcrm.Mean))
	assert.Equal(t, one("pair_float32", 5, 256), launch(4097, pcrm.None))
	assert.Equal(t, int64(Partials), first(rowBlocks(1<<40)))
	assert.Equal(t, int64(Partials), first(tokenBlocks(1<<40, 1)))
}

func first(a, _ int64) int64 { return a }

// Each device is opened once, with all kernels at once, and not before the first call.
func TestOpen(t *testing.T) {
	if noFake != "" {
		t.Skip(noFake)
	}
	if os.Getenv("PCRM_TEST_OPEN") == "" {
		log := filepath.Join(t.TempDir(), "log")
		out, err := command([]string{"-test.run=^TestPTX$"}, os.Getenv(fakeVariable), "FAKECUDA_LOG="+log).CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.NoFileExists(t, log, "nothing is called before it is needed")
		out, err = command([]string{"-test.run=^TestOpen$"}, os.Getenv(fakeVariable), "PCRM_TEST_OPEN=1").CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	lines := calls(t, func() {
		var wait sync.WaitGroup
		for range 8 {
			wait.Go(func() { device(t, 1) })
		}
		wait.Wait()
	})
	all := strings.Join(lines, "\n")
	assert.True(t, strings.HasPrefix(all, "cuDriverGetVersion\ncuInit 0\ncuDeviceGetCount\n"), all)
	assert.Equal(t, 1, strings.Count(all, "cuDevicePrimaryCtxRetain 1"))
	assert.Equal(t, 1, strings.Count(all, "cuModuleLoadDataEx"))
	assert.Equal(t, len(Device{}.kernels), strings.Count(all, "cuModuleGetFunction"))
	assert.True(t, strings.HasSuffix(all, "cuCtxPopCurrent 1"), all)
	assert.NotContains(t, all, "cuDevicePrimaryCtxRetain 0")
	info, err := Probe()
	require.NoError(t, err)
	assert.Equal(t, Info{Driver: "12.1", Devices: []DeviceInfo{{"Fake 0", "9.0"}, {"Fake 1", "9.0"}}}, info)
	_, err = Open(2)
	assert.EqualError(t, err, "device must be the index of one of the 2 devices, got 2")
	_, err = Open(-1)
	assert.EqualError(t, err, "device must be the index of one of the 2 devices, got -1")
}

// All reasons for a missing device, each in its own process.
func TestErrors(t *testing.T) {
	if noFake != "" {
		t.Skip(noFake)
	}
	if os.Getenv("PCRM_TEST_ERRORS") != "" {
		d, err := Open(0)
		if err == nil {
			x, y := []float32{1}, []float32{2}
			err = d.RewardLoss(0, Float32, Batch{Rows: 1, Loss: addressOf(y), Partials: addressOf(y), Chosen: strided(x), Rejected: strided(x), Delta: strided(x)}, 0)
		}
		fmt.Printf("ERROR %T %v\n", err, err)
		_, again := Probe()
		fmt.Printf("PROBE %v\n", again)
		return
	}
	folder, old := os.Getenv(fakeVariable), t.TempDir()
	require.NoError(t, buildFake(old, "-DFAKECUDA_NO_LAUNCH"))
	nothing := t.TempDir()
	broken := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(broken, "libcuda.so.1"), []byte("no library"), 0o600))
	type scenario struct {
		folder, variable, want string
		probe                  bool // whether Probe fails too
	}
	const unavailable, failed = "*gpu.Unavailable ", "*gpu.Error "
	for name, s := range map[string]scenario{
		"broken library": {broken, "", unavailable + "there is no CUDA driver: .*libcuda.so.1: ", true},
		"old library":    {old, "", unavailable + "there is no CUDA driver: libcuda.so.1 has no cuLaunchKernel$", true},
		"old driver": {folder, "FAKECUDA_VERSION=11080",
			unavailable + `the driver must support CUDA 12.1 \(driver 530\) or newer, got CUDA 11.8$`, true},
		"no device by cuInit": {folder, "FAKECUDA_FAIL=cuInit:100",
			unavailable + `cuInit: CUDA_ERROR_NO_DEVICE \(100\): no CUDA-capable device is detected$`, true},
		"mismatch": {folder, "FAKECUDA_FAIL=cuInit:803",
			unavailable + `cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH \(803\): system has unsupported`, true},
		"no device": {folder, "FAKECUDA_DEVICES=0", unavailable + "the CUDA driver finds no device$", true},
		"old device": {folder, "FAKECUDA_CAPABILITY=61",
			unavailable + "device 0, Fake 0, must have compute capability 7.0 or newer, got 6.1$", false},
		"compiler": {folder, "FAKECUDA_FAIL=cuModuleLoadDataEx:218",
			failed + `cuModuleLoadDataEx: CUDA_ERROR_INVALID_PTX \(218\): a PTX JIT compilation failed: ptxas: line 1: too new$`, false},
		"function": {folder, "FAKECUDA_FAIL=cuModuleGetFunction:500", failed + `cuModuleGetFunction: CUDA_ERROR_NOT_FOUND \(500\)`, false},
		"context":  {folder, "FAKECUDA_FAIL=cuDevicePrimaryCtxRetain:2", failed + `cuDevicePrimaryCtxRetain: CUDA_ERROR_OUT_OF_MEMORY \(2\): out of memory$`, false},
		"push":     {folder, "FAKECUDA_FAIL=cuCtxPushCurrent:1", failed + `cuCtxPushCurrent_v2: CUDA_ERROR_INVALID_VALUE`, false},
		"launch": {folder, "FAKECUDA_FAIL=cuLaunchKernel:700",
			failed + `cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS \(700\): an illegal memory access was encountered$`, false},
		"unknown code": {folder, "FAKECUDA_FAIL=cuLaunchKernel:12345", failed + `cuLaunchKernel: an unknown error \(12345\): CUDA has no text for it$`, false},
		"no library":   {nothing, "", unavailable + "there is no CUDA driver: libcuda.so.1: cannot open shared object file", true},
	} {
		t.Run(name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log")
			out, err := command([]string{"-test.run=^TestErrors$", "-test.v"}, s.folder, "PCRM_TEST_ERRORS=1", "FAKECUDA_LOG="+log, s.variable).CombinedOutput()
			require.NoError(t, err, "%s", out)
			found := regexp.MustCompile(`(?m)^ERROR (.*)$`).FindSubmatch(out)
			require.NotNil(t, found, "%s", out)
			if name == "no library" && !strings.Contains(string(found[1]), "no CUDA driver") {
				t.Skip("this machine has a libcuda.so.1 of its own")
			}
			assert.Regexp(t, "^"+s.want, string(found[1]))
			assert.Equal(t, !s.probe, strings.Contains(string(out), "PROBE <nil>"), "%s", out)
			// After any failure the previous context is current again.
			text, _ := os.ReadFile(log)
			if name != "push" {
				assert.Equal(t, strings.Count(string(text), "cuCtxPushCurrent"), strings.Count(string(text), "cuCtxPopCurrent"), "%s", text)
			}
		})
	}
}

func TestBadArguments(t *testing.T) {
	d := device(t, 0)
	x := []float32{1}
	good := Batch{Rows: 1, Loss: addressOf(x), Partials: addressOf(x), Chosen: strided(x), Rejected: strided(x), Delta: strided(x)}
	change := func(f func(*Batch)) error {
		b := good
		f(&b)
		return d.RewardLoss(0, Float32, b, 0)
	}
	token := func(f func(*Tokens)) error {
		tok := Tokens{Width: 1, ChosenIDs: IDs{Address: 8, Size: 8}, RejectedIDs: IDs{Address: 8, Size: 4}}
		f(&tok)
		return d.TokenLoss(0, Float32, good, tok)
	}
	for want, err := range map[string]error{
		"dtype must be Float32, Float64, BFloat16 or Float16, got 4":                             d.RewardLoss(0, 4, good, 0),
		"chosen_rewards must have at least one score, got none":                                  change(func(b *Batch) { b.Rows = 0 }),
		"reduction must be Mean, Sum or None, got 3":                                             change(func(b *Batch) { b.Reduction = 3 }),
		"label_smoothing must be in [0, 0.5), got 0.5":                                           change(func(b *Batch) { b.LabelSmoothing = 0.5 }),
		"label_smoothing must be in [0, 0.5), got NaN":                                           change(func(b *Batch) { b.LabelSmoothing = math.NaN() }),
		"loss, chosen, rejected and delta must have an address other than 0":                     change(func(b *Batch) { b.Delta.Address = 0 }),
		"gradChosen and gradRejected must both be given or both be 0":                            change(func(b *Batch) { b.GradChosen = 8 }),
		"partials must be the address of 1024 float64, got 0":                                    change(func(b *Batch) { b.Partials = 0 }),
		"center_rewards_coefficient must be at least 0 and finite, got -1":                       d.RewardLoss(0, Float32, good, -1),
		"width must be in [1, 2^31), got 0":                                                      token(func(k *Tokens) { k.Width = 0 }),
		"width must be in [1, 2^31), got 2147483648":                                             token(func(k *Tokens) { k.Width = 1 << 31 }),
		"ids must have an address other than 0 and 4 or 8 bytes each, got address 8 and 2 bytes": token(func(k *Tokens) { k.RejectedIDs.Size = 2 }),
		"beta must be greater than 0 and finite, got 0":                                          d.DPOLoss(0, Float32, good, strided(x), strided(x), 8, 8, 0),
		"count and width must be at least 1, got 0 and 1":                                        d.Scale(0, Float32, 0, 1, 8, 8, 8, 8, Strided{8, 0}),
		"every gradient must have an address other than 0":                                       d.Scale(0, Float32, 1, 1, 8, 8, 8, 8, Strided{}),
	} {
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument, want)
		assert.EqualError(t, err, want)
	}
}

func TestPTX(t *testing.T) {
	assert.Equal(t, "8.1", PTXVersion())
	assert.Contains(t, ptx, "\n.target sm_70\n")
}

// A launch allocates nothing in Go.
func TestAllocations(t *testing.T) {
	d := device(t, 0)
	x, y := []float32{1}, []float32{2}
	b := Batch{Rows: 1, Loss: addressOf(y), Partials: addressOf(y), Chosen: strided(x), Rejected: strided(x), Delta: strided(x)}
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		if d.RewardLoss(0, Float32, b, 0) != nil {
			t.Fail()
		}
	}))
}
