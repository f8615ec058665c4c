package prior

import (
	"math"

	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/half"
	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
)

// Float16 holds the bits of an IEEE 754 half-precision number, for which Go has no
// arithmetic.
type Float16 uint16

// Float64 converts exactly. A NaN stays a NaN with an unspecified payload.
func (h Float16) Float64() float64 { return half.Float64(uint16(h)) }

// Element is the type constraint of the elements of an embedding.
type Element interface{ float32 | float64 | Float16 }

// Cosine returns the cosine of two embeddings,
//
//	a·b / sqrt(a·a b·b)
//
// computed in float64 and clamped to [-1, 1]. Equal embeddings give exactly 1.
//
// Errors, each a *pcrm.ArgumentError: embeddings that are empty or of different
// lengths; a zero vector, which has no direction; a NaN or infinite element.
func Cosine[E Element](a, b []E) (float64, error) {
	if err := checkEmbeddings(1, len(a), len(a), len(b)); err != nil {
		return 0, err
	}
	c := cosine(a, b)
	if c != c {
		return 0, embeddingError(a, b, -1)
	}
	return c, nil
}

// Cosines writes the prior similarity of each pair of rows to dst, rounded once
// (arXiv 2404.00978, section 3.2.2). a and b each hold len(dst) rows of dim elements,
// without gaps; there may be no rows. With c the [Cosine] of two rows, clamped to [0, 1],
//
//	angular: s = (pi - acos(c))/pi, in [0.5, 1]
//	else:    s = c,                 in [0, 1]
//
// The paper's reward models use the angular form and its DPO script the other form. Rows
// in the same direction have s = 1. Rows at a right angle or more have s = 0.5 in the
// angular form and 0 in the other.
//
// Errors, each a *pcrm.ArgumentError: dim < 1; a or b without exactly len(dst)*dim
// elements; a row that is all zero or contains a NaN or an infinity (the message names the
// first such row). After an error the contents of dst are undefined.
func Cosines[F Float, E Element](dst []F, a, b []E, dim int, angular bool) error {
	if err := checkEmbeddings(len(dst), dim, len(a), len(b)); err != nil {
		return err
	}
	var bad parallel.FirstRow
	parallel.Rows(len(dst), 1+1<<15/dim, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			c := cosine(a[i*dim:(i+1)*dim], b[i*dim:(i+1)*dim])
			if c != c {
				bad.Report(i)
				return
			}
			s := max(c, 0)
			if angular {
				s = (math.Pi - math.Acos(s)) / math.Pi
			}
			dst[i] = F(s)
		}
	})
	if i := bad.Row(); i >= 0 {
		return embeddingError(a[i*dim:(i+1)*dim], b[i*dim:(i+1)*dim], i)
	}
	return nil
}

func checkEmbeddings(rows, dim, a, b int) error {
	switch {
	case dim < 1:
		return argument.Errorf("dim", -1, "must be at least 1, got %d", dim)
	case a%dim != 0 || a/dim != rows: // rows*dim might overflow
		return argument.Errorf("a", -1, "must have %d rows of %d elements, got %d elements", rows, dim, a)
	case b != a:
		return argument.Errorf("b", -1, "must have %d elements, like a, got %d", a, b)
	}
	return nil
}

// embeddingError returns the reason why the cosine of two rows is NaN.
func embeddingError[E Element](a, b []E, row int) error {
	name := "a"
	m := magnitude(a)
	if m > 0 && m <= math.MaxFloat64 {
		name, m = "b", magnitude(b)
	}
	if m == 0 {
		return argument.Errorf(name, row, "must have a nonzero element, got a zero vector")
	}
	return argument.Errorf(name, row, "must be finite, got a NaN or infinite element")
}

// cosine is NaN if either vector is zero or not finite.
func cosine[E Element](a, b []E) float64 {
	ab, aa, bb := products(a, b)
	// Outside this range aa*bb or a square has overflowed or lost precision, which only
	// float64 elements can cause. Scaling by powers of two does not round noticeably.
	if !(aa > 0x1p-500 && aa < 0x1p500 && bb > 0x1p-500 && bb < 0x1p500) {
		ma, mb := magnitude(a), magnitude(b)
		if !(ma > 0 && ma <= math.MaxFloat64 && mb > 0 && mb <= math.MaxFloat64) {
			return math.NaN()
		}
		ab, aa, bb = scaledProducts(a, b, exponent(ma), exponent(mb))
	}
	// sqrt(x*x) is exactly x, so equal vectors give exactly 1.
	return max(-1, min(1, ab/math.Sqrt(aa*bb)))
}

// exponent returns a power of two s for which m*s is in [2^-60, 2). Neither s nor the
// scaled elements that matter overflow or underflow.
func exponent(m float64) float64 {
	_, e := math.Frexp(m)
	return math.Ldexp(1, min(1-e, 1020))
}

// magnitude returns the largest absolute value, or NaN if an element is NaN.
func magnitude[E Element](x []E) float64 {
	m := 0.0
	for _, v := range x {
		m = max(m, math.Abs(wide(v)))
	}
	return m
}

func wide[E Element](v E) float64 {
	if h, ok := any(v).(Float16); ok {
		return h.Float64()
	}
	return float64(v)
}

// products computes
//
//	for i := range a { ab += a[i]*b[i]; aa += a[i]*a[i]; bb += b[i]*b[i] }
//
// in float64. It switches on the element type once, whereas wide does so for each element.
func products[E Element](a, b []E) (ab, aa, bb float64) {
	switch x := any(a).(type) {
	case []float32:
		return products32(x, any(b).([]float32))
	case []float64:
		return scalarProducts(x, any(b).([]float64))
	}
	return halfProducts(any(a).([]Float16), any(b).([]Float16))
}

// scalarProducts keeps two partial sums each. A single sum would wait for the previous
// addition, and more would leave no registers for the products.
func scalarProducts[F Float](a, b []F) (ab, aa, bb float64) {
	var ab1, aa1, bb1 float64
	for len(a) >= 2 && len(b) >= 2 {
		x0, x1, y0, y1 := float64(a[0]), float64(a[1]), float64(b[0]), float64(b[1])
		ab, ab1 = ab+x0*y0, ab1+x1*y1
		aa, aa1 = aa+x0*x0, aa1+x1*x1
		bb, bb1 = bb+y0*y0, bb1+y1*y1
		a, b = a[2:], b[2:]
	}
	if len(a) > 0 {
		x, y := float64(a[0]), float64(b[0])
		ab, aa, bb = ab+x*y, aa+x*x, bb+y*y
	}
	return ab + ab1, aa + aa1, bb + bb1
}

// halfProducts converts the elements in chunks. All results are NaN if an element is
// infinite or NaN.
func halfProducts(a, b []Float16) (ab, aa, bb float64) {
	var x, y [128]float32
	var special Float16 // the highest bit is set if an exponent consists of ones only
	for len(a) > 0 {
		n := min(len(a), len(x))
		for i, h := range a[:n] {
			g := b[i]
			x[i&127], y[i&127] = half.Finite(uint16(h)), half.Finite(uint16(g))
			special |= (h&0x7c00 + 0x400) | (g&0x7c00 + 0x400)
		}
		ab1, aa1, bb1 := products32(x[:n], y[:n])
		ab, aa, bb = ab+ab1, aa+aa1, bb+bb1
		a, b = a[n:], b[n:]
	}
	if special&0x8000 != 0 {
		nan := math.NaN()
		return nan, nan, nan
	}
	return ab, aa, bb
}

// scaledProducts computes the products of a*sa and b*sb.
func scaledProducts[E Element](a, b []E, sa, sb float64) (ab, aa, bb float64) {
	for i, v := range a {
		x, y := wide(v)*sa, wide(b[i])*sb
		ab, aa, bb = ab+x*y, aa+x*x, bb+y*y
	}
	return ab, aa, bb
}
