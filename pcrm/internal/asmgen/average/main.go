// Command average writes the assembly of package checkpoint. For each type of numbers it
// writes a loop that adds them to sums, and a loop that converts sums to them, eight at a
// time.
package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

const (
	lanes = 8

	// Predicates of VCMPPD. The second is "second operand > first" in Intel's order.
	notEqual, greater = operand.U8(4), operand.U8(0x1e)
	nearestEven       = operand.U8(0)
)

func main() {
	ConstraintExpr("amd64,!purego")
	for _, dtype := range []string{"F64", "F32", "BF16", "F16"} {
		accumulate(dtype, false)
		accumulate(dtype, true)
	}
	for _, dtype := range []string{"F64", "F32", "BF16", "F16"} {
		quotient(dtype)
	}
	Generate()
}

func size(dtype string) int { return map[string]int{"F64": 8, "F32": 4, "BF16": 2, "F16": 2}[dtype] }

func accumulate(dtype string, add bool) {
	name, operator := "scale"+dtype, "="
	if add {
		name, operator = "accumulate"+dtype, "+="
	}
	TEXT(name, NOSPLIT, "func(sums *float64, data *byte, n int, weight float64)")
	Doc(name + " is, for n a multiple of 8 and greater than 0, sums[i] " + operator + " weight * data[i].")
	Pragma("noescape")
	sums, data, n := Load(Param("sums"), GP64()), Load(Param("data"), GP64()), Load(Param("n"), GP64())
	weight := broadcast("weight")
	Label("eight")
	for i, x := range decode(dtype, operand.Mem{Base: data}) {
		sum := operand.Mem{Base: sums, Disp: 32 * i}
		VMULPD(weight, x, x)
		if add {
			VADDPD(sum, x, x)
		}
		VMOVUPD(x, sum)
	}
	next(n, sums, data, size(dtype))
	VZEROUPPER()
	RET()
}

func broadcast(name string) reg.VecVirtual {
	b, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	v := YMM()
	VBROADCASTSD(b.Addr, v)
	return v
}

// next ends the loop, which processes eight numbers at a time.
func next(n, sums, data reg.Register, size int) {
	ADDQ(operand.Imm(8*lanes), sums)
	ADDQ(operand.Imm(uint64(size*lanes)), data)
	SUBQ(operand.Imm(lanes), n)
	JNZ(operand.LabelRef("eight"))
}

// decode loads eight numbers as float64.
func decode(dtype string, m operand.Mem) [2]reg.VecVirtual {
	low, high := YMM(), YMM()
	if dtype == "F64" {
		VMOVUPD(m, low)
		VMOVUPD(m.Offset(32), high)
		return [2]reg.VecVirtual{low, high}
	}
	single := YMM()
	switch dtype {
	case "F32":
		VMOVUPS(m, single)
	case "BF16":
		VPMOVZXWD(m, single)
		VPSLLD(operand.U8(16), single, single)
	case "F16":
		VCVTPH2PS(m, single)
	}
	VEXTRACTF128(operand.U8(1), single, high.AsX())
	VCVTPS2PD(single.AsX(), low)
	VCVTPS2PD(high.AsX(), high)
	return [2]reg.VecVirtual{low, high}
}

func quotient(dtype string) {
	name := "quotient" + dtype
	TEXT(name, NOSPLIT, "func(data *byte, sums *float64, n int, total float64) (special uint64)")
	Doc(name+" is, for n a multiple of 8 and greater than 0, data[i] = sums[i] / total,",
		"rounded once. special is not 0 if some data[i] is NaN or infinite; those of an",
		"infinite sums[i] are undefined.")
	Pragma("noescape")
	data, sums, n := Load(Param("data"), GP64()), Load(Param("sums"), GP64()), Load(Param("n"), GP64())
	total, special, reciprocal := broadcast("total"), YMM(), YMM()
	VPXOR(special, special, special)
	VBROADCASTSD(constant64("oneDouble", math.Float64bits(1)), reciprocal)
	VDIVPD(total, reciprocal, reciprocal)
	fraction := GP64()
	VMOVQ(total.AsX(), fraction)
	SHLQ(operand.Imm(12), fraction) // without sign and exponent
	Label("eight")
	low, high := YMM(), YMM()
	if dtype == "F64" {
		for i, x := range []reg.VecVirtual{low, high} {
			VMOVUPD(operand.Mem{Base: sums, Disp: 32 * i}, x)
			VDIVPD(total, x, x)
		}
	} else {
		divide(sums, fraction, total, reciprocal, low, high)
	}
	m := operand.Mem{Base: data}
	switch dtype {
	case "F64":
		for i, x := range []reg.VecVirtual{low, high} {
			VMOVUPD(x, m.Offset(32*i))
			VSUBPD(x, x, x) // 0, or NaN
			VORPD(x, special, special)
		}
	case "F32":
		single := narrow(low, high)
		VMOVUPS(single, m)
		VSUBPS(single, single, single)
		VORPS(single, special, special)
	case "BF16":
		b := odd(low, high)
		last := YMM()
		VPSRLD(operand.U8(16), b, last)
		VPAND(constant("one", 1), last, last)
		VPADDD(constant("justUnderHalf", 0x7fff), b, b)
		VPADDD(last, b, b)
		VPSRLD(operand.U8(16), b, b)
		VPACKUSDW(b, b, b) // each half by itself
		VPERMQ(operand.U8(0b1000), b, b)
		VMOVDQU(b.AsX(), m)
		exponents(b.AsX(), special.AsX(), constant("bfloat16Infinity", 0x7f807f80))
	case "F16":
		b := odd(low, high)
		half := XMM()
		VCVTPS2PH(nearestEven, b, half)
		VMOVDQU(half, m)
		exponents(half, special.AsX(), constant("float16Infinity", 0x7c007c00))
	}
	next(n, sums, data, size(dtype))
	result := GP64()
	high, low = YMM(), YMM()
	VEXTRACTF128(operand.U8(1), special, high.AsX())
	VPOR(high.AsX(), special.AsX(), low.AsX())
	VPSHUFD(operand.U8(0b1110), low.AsX(), high.AsX())
	VPOR(high.AsX(), low.AsX(), low.AsX())
	VMOVQ(low.AsX(), result)
	Store(result, ReturnIndex(0))
	VZEROUPPER()
	RET()
}

// divide divides without the latency of a division. With y the rounded 1/b and q the rounded
// a y, q - (b q - a) y is the correctly rounded a/b. This takes one multiplication and two fused operations
// (Brisebarre, Muller and Raina, "Accelerating correctly rounded floating-point division
// when the divisor is known in advance", 2004, on Markstein's theorem). In this form -0
// stays -0. Below 2^-900, where the remainder could underflow, the types narrower than
// float64 are 0 anyway. A power of two, which has no fraction, needs no second step.
func divide(a, fraction reg.Register, b, y, low, high reg.VecVirtual) {
	for i, q := range []reg.VecVirtual{low, high} {
		VMULPD(operand.Mem{Base: a, Disp: 32 * i}, y, q)
	}
	TESTQ(fraction, fraction)
	JZ(operand.LabelRef("divided"))
	for i, q := range []reg.VecVirtual{low, high} {
		remainder := YMM()
		VMOVAPD(q, remainder)
		VFMSUB213PD(operand.Mem{Base: a, Disp: 32 * i}, b, remainder)
		VFNMADD231PD(remainder, y, q)
	}
	Label("divided")
}

// exponents sets special if all bits of an exponent, which mask selects, are set.
func exponents(words, special reg.Register, mask operand.Mem) {
	t := XMM()
	VPAND(mask, words, t)
	VPCMPEQW(mask, t, t)
	VPOR(t, special, special)
}

// narrow rounds to float32.
func narrow(low, high reg.VecVirtual) reg.VecVirtual {
	a, b, single := XMM(), XMM(), YMM()
	VCVTPD2PSY(low, a)
	VCVTPD2PSY(high, b)
	VINSERTF128(operand.U8(1), b, a.AsY(), single)
	return single
}

// odd rounds to odd: see the function of that name in package checkpoint.
func odd(low, high reg.VecVirtual) reg.VecVirtual {
	single := narrow(low, high)
	var inexact, above [2]reg.VecVirtual
	sign := constant64("magnitude", 1<<63-1)
	for i, x := range []reg.VecVirtual{low, high} {
		y := YMM()
		half := reg.Register(single.AsX())
		if i == 1 {
			half = XMM()
			VEXTRACTF128(operand.U8(1), single, half)
		}
		VCVTPS2PD(half, y)
		inexact[i], above[i] = YMM(), YMM()
		VCMPPD(notEqual, x, y, inexact[i])
		VPAND(sign, y, y)
		VPAND(sign, x, x)
		VCMPPD(greater, x, y, above[i])
	}
	bits := YMM()
	VPADDD(halves(above), single, bits) // a mask is -1
	last := halves(inexact)
	VPSRLD(operand.U8(31), last, last)
	VPOR(last, bits, bits)
	return bits
}

// halves converts two vectors of 64-bit masks to 32-bit masks.
func halves(masks [2]reg.VecVirtual) reg.VecVirtual {
	v := YMM()
	VSHUFPS(operand.U8(0b10_00_10_00), masks[1], masks[0], v) // low 0, 1, high 0, 1, low 2, 3, high 2, 3
	VPERMPD(operand.U8(0b11_01_10_00), v, v)
	return v
}

var constants = map[string]operand.Mem{}

// constant returns a vector of eight copies of value.
func constant(name string, value uint32) operand.Mem {
	return constant64(name, uint64(value)<<32|uint64(value))
}

func constant64(name string, value uint64) operand.Mem {
	m, ok := constants[name]
	if !ok {
		m = GLOBL(name, RODATA|NOPTR)
		for i := range 4 {
			DATA(8*i, operand.U64(value))
		}
		constants[name] = m
	}
	return m
}
