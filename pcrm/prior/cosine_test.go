package prior_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/pcrm-project/pcrm/pcrm"
	"github.com/pcrm-project/pcrm/pcrm/internal/testkit"
	"github.com/pcrm-project/pcrm/pcrm/prior"
)

// half is the reference conversion, by the definition in IEEE 754.
func half(h uint16) float64 {
	sign, exponent, fraction := 1-2*float64(h>>15), int(h>>10&31), float64(h&0x3ff)
	switch exponent {
	case 0:
		return math.Copysign(math.Ldexp(fraction, -24), sign)
	case 31:
		if fraction != 0 {
			return math.NaN()
		}
		return sign * math.Inf(1)
	}
	return sign * math.Ldexp(1024+fraction, exponent-25)
}

func TestFloat16AllValues(t *testing.T) {
	for h := range 1 << 16 {
		want, got := half(uint16(h)), prior.Float16(h).Float64()
		if math.Float64bits(want) != math.Float64bits(got) && !(want != want && got != got) {
			t.Fatalf("%#04x is %v, want %v", h, got, want)
		}
	}
}

func TestGoldenCosine(t *testing.T) {
	cases := readGolden(t).Cases.Cosine
	require.NotEmpty(t, cases)
	t.Run("float64", func(t *testing.T) { goldenCosine[float64](t) })
	t.Run("float32", func(t *testing.T) { goldenCosine[float32](t) })
}

// Both precisions have the same inputs and the same float64 arithmetic. The error of 33 products and
// sums is less than 1e-14 of the largest possible cosine.
func goldenCosine[F prior.Float](t *testing.T) {
	for i, c := range readGolden(t).Cases.Cosine {
		got, err := prior.Cosine(testkit.Convert[F](c.A), testkit.Convert[F](c.B))
		require.NoError(t, err)
		testkit.CloseTo(t, c.Cosine, got, 0, 1e-14, "case %d", i)
		dst := make([]float64, 1)
		require.NoError(t, prior.Cosines(dst, testkit.Convert[F](c.A), testkit.Convert[F](c.B), len(c.A), true))
		// The derivative of acos is -1/sin, so errors of the cosine grow near 1, but 1 itself is exact.
		testkit.CloseTo(t, c.Angular, dst[0], 0, 1e-14/math.Max(1e-7, math.Sqrt(1-c.Cosine*c.Cosine)), "case %d", i)
		require.NoError(t, prior.Cosines(dst, testkit.Convert[F](c.A), testkit.Convert[F](c.B), len(c.A), false))
		testkit.CloseTo(t, math.Max(0, c.Cosine), dst[0], 0, 1e-14, "case %d", i)
	}
}

func normals(r *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = r.NormFloat64()
	}
	return x
}

func TestCosineProperties(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		a, b := normals(r, 1+r.IntN(40)), []float64(nil)
		b = normals(r, len(a))
		ab, err := prior.Cosine(a, b)
		require.NoError(t, err)
		ba, err := prior.Cosine(b, a)
		require.NoError(t, err)
		assert.Equal(t, ab, ba, "symmetric")
		self, err := prior.Cosine(a, a)
		require.NoError(t, err)
		assert.Equal(t, 1.0, self, "exactly 1 with itself")
		for i := range b {
			b[i] *= -3
		}
		opposite, err := prior.Cosine(a, b)
		require.NoError(t, err)
		testkit.CloseTo(t, -ab, opposite, 0, 1e-14, "turned round and longer")
		dst := make([]float32, 1)
		for _, angular := range []bool{true, false} {
			require.NoError(t, prior.Cosines(dst, a, b, len(a), angular))
			assert.True(t, dst[0] >= 0 && dst[0] <= 1 && (!angular || dst[0] >= 0.5), "%v", dst[0])
		}
	}
}

// Squares of such elements overflow, underflow to zero or lose precision.
func TestCosineExtremeElements(t *testing.T) {
	for _, big := range []float64{1e-320, math.SmallestNonzeroFloat64, 1e-200, 1e-160, 1, 1e100, 1e160, 1e200, math.MaxFloat64} {
		for _, other := range []float64{1e-320, 1e-200, 1, 1e200, math.MaxFloat64} {
			for a, want := range map[[2]float64]float64{{1, 0}: math.Sqrt2 / 2, {0, -1}: -math.Sqrt2 / 2, {1, 1}: 1, {1, -1}: 0} {
				got, err := prior.Cosine([]float64{a[0] * big, a[1] * big}, []float64{other, other})
				require.NoError(t, err)
				testkit.CloseTo(t, want, got, 0, 1e-15, "%v of %v with %v", a, big, other)
			}
		}
	}
}

func TestCosineErrors(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		a, b    []float64
		message string
	}{
		{nil, nil, "dim must be at least 1, got 0"},
		{[]float64{1, 2}, []float64{1}, "b must have 2 elements, like a, got 1"},
		{[]float64{0, 0}, []float64{1, 0}, "a must have a nonzero element, got a zero vector"},
		{[]float64{1, 0}, []float64{0, math.Copysign(0, -1)}, "b must have a nonzero element, got a zero vector"},
		{[]float64{1, nan}, []float64{1, 0}, "a must be finite, got a NaN or infinite element"},
		{[]float64{1, 0}, []float64{math.Inf(1), 0}, "b must be finite, got a NaN or infinite element"},
	} {
		_, err := prior.Cosine(c.a, c.b)
		assert.EqualError(t, err, c.message)
		var argument *pcrm.ArgumentError
		assert.ErrorAs(t, err, &argument)
	}
}

func TestCosinesErrors(t *testing.T) {
	dst, ok := make([]float64, 3), []float64{1, 2, 3, 4, 5, 6}
	assert.EqualError(t, prior.Cosines(dst, ok, ok, 0, true), "dim must be at least 1, got 0")
	assert.EqualError(t, prior.Cosines(dst, ok, ok, 4, true), "a must have 3 rows of 4 elements, got 6 elements")
	assert.EqualError(t, prior.Cosines(dst, ok, ok[:4], 2, true), "b must have 6 elements, like a, got 4")
	assert.EqualError(t, prior.Cosines(dst, ok, []float64{1, 2, 0, 0, math.NaN(), 1}, 2, true), "b[1] must have a nonzero element, got a zero vector")
	assert.EqualError(t, prior.Cosines(dst, []float64{1, 2, 3, math.Inf(1), 1, 1}, ok, 2, false), "a[1] must be finite, got a NaN or infinite element")
	require.NoError(t, prior.Cosines([]float64{}, []float32{}, nil, 8, true), "no rows")
	nan16 := []prior.Float16{0x7e00}
	assert.EqualError(t, prior.Cosines(dst[:1], nan16, nan16, 1, true), "a[0] must be finite, got a NaN or infinite element")
}

// A batch large enough for several goroutines gives the same bits as each row alone, and the error
// names the first invalid row however the work is divided.
func TestCosinesOfManyRows(t *testing.T) {
	t.Run("float32", func(t *testing.T) { cosinesOfManyRows(t, func(v float64) float32 { return float32(v) }) })
	t.Run("float64", func(t *testing.T) { cosinesOfManyRows(t, func(v float64) float64 { return v }) })
	t.Run("float16", func(t *testing.T) {
		cosinesOfManyRows(t, func(v float64) prior.Float16 {
			return prior.Float16(0x3c00 + uint16(int(v*100)&0x83ff)) // ±[1, 2)
		})
	})
}

func cosinesOfManyRows[E prior.Element](t *testing.T, element func(float64) E) {
	const rows, dim = 5000, 37
	r := rand.New(rand.NewPCG(5, 6))
	a, b := make([]E, rows*dim), make([]E, rows*dim)
	for i := range a {
		a[i], b[i] = element(r.NormFloat64()), element(r.NormFloat64())
	}
	dst := make([]float64, rows)
	require.NoError(t, prior.Cosines(dst, a, b, dim, false))
	for i, got := range dst {
		want, err := prior.Cosine(a[i*dim:(i+1)*dim], b[i*dim:(i+1)*dim])
		require.NoError(t, err)
		require.Equal(t, math.Max(0, want), got, "row %d", i)
	}
	for _, row := range []int{4900, 4321, 17} {
		clear(b[row*dim : (row+1)*dim])
	}
	assert.EqualError(t, prior.Cosines(dst, a, b, dim, false), "b[17] must have a nonzero element, got a zero vector")
}

func TestCosineAllocatesNothing(t *testing.T) {
	a := make([]float32, 384)
	for i := range a {
		a[i] = float32(i + 1)
	}
	assert.Zero(t, testing.AllocsPerRun(100, func() { _, _ = prior.Cosine(a, a) }))
	// The allocations that the goroutines share, whatever the number of rows.
	dst := make([]float32, 1)
	one := testing.AllocsPerRun(100, func() { _ = prior.Cosines(dst, a, a, 384, true) })
	dst = make([]float32, 384)
	many := testing.AllocsPerRun(100, func() { _ = prior.Cosines(dst, a, a, 1, true) })
	assert.LessOrEqual(t, one, 3.0)
	assert.LessOrEqual(t, many, one)
}

// Cosines of arbitrary bits against the definition of float16 and the plain loop.
func FuzzCosinesFloat16(f *testing.F) {
	f.Add([]byte{0, 0x3c, 0, 0x3c}, []byte{0, 0x3c, 0, 0xbc})
	f.Add([]byte{1, 0, 0, 0}, []byte{0xff, 0x7b, 0, 0})
	f.Add([]byte{0, 0x7c}, []byte{0, 0x7e})
	f.Fuzz(func(t *testing.T, x, y []byte) {
		n := min(len(x), len(y)) / 2
		if n == 0 {
			return
		}
		a, b := make([]prior.Float16, n), make([]prior.Float16, n)
		var ab, aa, bb float64
		for i := range n {
			v, w := binary.LittleEndian.Uint16(x[2*i:]), binary.LittleEndian.Uint16(y[2*i:])
			a[i], b[i] = prior.Float16(v), prior.Float16(w)
			ab, aa, bb = ab+half(v)*half(w), aa+half(v)*half(v), bb+half(w)*half(w)
		}
		dst := make([]float64, 1)
		err := prior.Cosines(dst, a, b, n, false)
		want := math.Max(0, ab/math.Sqrt(aa)/math.Sqrt(bb))
		if want != want {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		testkit.CloseTo(t, want, dst[0], 0, 1e-15*float64(n+4))
	})
}
