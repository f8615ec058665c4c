// Command loss writes the assembly of package pcrm.
//
// Each kernel is an instance of the same program for a register width (AVX2: 32 bytes,
// AVX-512: 64 bytes) and a precision. Comments explain where instances differ.
package main

import (
	"fmt"
	"iter"
	"math"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("amd64,!purego")
	for _, wide := range []bool{false, true} {
		for _, double := range []bool{false, true} {
			(&kernel{wide: wide, double: double, pause: func() {}}).reward()
		}
	}
	Generate()
}

// Near-minimax polynomials (Chebyshev interpolation at 50 digits, then rounded),
// highest power first. The given errors are the largest relative errors of the whole function,
// without the rounding errors of its evaluation.
var (
	// q in exp(r) = 1 + r + r^2 q(r), |r| <= ln(2)/2: 1.1e-8 and 1.2e-15.
	exp32 = []float64{0.0013926213141530752, 0.008363203145563602, 0.041666556149721146, 0.16666576266288757, 0.5}
	exp64 = []float64{2.7613852100963253e-07, 2.7625169883520667e-06, 2.480153630713628e-05, 0.00019841208634639135,
		0.0013888888905922382, 0.00833333335377842, 0.04166666666665131, 0.1666666666664823, 0.5}

	// p in 2 atanh(z) = z p(t), p(0) = 2, with t = z^2 <= 0.36: 1.3e-8 and 1.1e-14.
	atanh32 = []float64{0.48475557565689087, -0.06382634490728378, 0.24126622080802917, 0.2142707258462906,
		0.28620800375938416, 0.39998871088027954, 0.6666666865348816, 2}
	atanh64 = []float64{0.9381904489925391, -1.1956477442607099, 1.0028959870826604, -0.3007093721663211,
		0.21679936783907636, 0.09652889192157259, 0.13603206685637387, 0.15361734810741995, 0.18183054023690828,
		0.2222218273397362, 0.2857142922370583, 0.39999999995785424, 0.6666666666667116, 2}
)

// kernel is the state of one instance while its body is being written.
type kernel struct {
	wide, double bool

	tail operand.Op // the mask of the existing elements; nil for a full vector

	lane  int    // the index of the vector within one iteration of the loop
	pause func() // switches to the next instruction of the other vector, if there is one
}

// interleave writes the same code for several vectors, alternating their instructions. A
// processor that looks a few hundred instructions ahead then finds work in all of them.
func (k *kernel) interleave(lanes int, write func(k *kernel)) {
	var next []func() (struct{}, bool)
	for lane := range lanes {
		n, _ := iter.Pull(func(yield func(struct{}) bool) {
			one := *k
			one.lane, one.pause = lane, func() { yield(struct{}{}) }
			write(&one)
		})
		next = append(next, n)
	}
	for ok := true; ok; {
		for _, n := range next {
			_, ok = n()
		}
	}
}

func (k *kernel) bytes() int {
	if k.wide {
		return 64
	}
	return 32
}

func (k *kernel) elem() int {
	if k.double {
		return 8
	}
	return 4
}

func (k *kernel) vec() reg.VecVirtual {
	if k.wide {
		return ZMM()
	}
	return YMM()
}

// constant is a table of equal elements. AVX2 reads all of them; AVX-512 broadcasts the first.
type constant struct{ operand.Mem }

var constants = map[string]constant{}

func (k *kernel) constant(name string, v float64) constant {
	if k.double {
		return k.bits(name, math.Float64bits(v))
	}
	return k.bits(name, uint64(math.Float32bits(float32(v))))
}

func (k *kernel) bits(name string, v uint64) constant {
	name = fmt.Sprintf("%s%d", name, 8*k.elem())
	if c, ok := constants[name]; ok {
		return c
	}
	c := constant{GLOBL(name, RODATA|NOPTR)}
	for at := 0; at < 32; at += k.elem() {
		if k.double {
			DATA(at, operand.U64(v))
		} else {
			DATA(at, operand.U32(v))
		}
	}
	constants[name] = c
	return c
}

type instruction func(...operand.Op)

// Single and double precision, and the forms whose first operand is broadcast.
var instructions = map[string][4]instruction{
	"ADD":       {VADDPS, VADDPD, VADDPS_BCST, VADDPD_BCST},
	"SUB":       {VSUBPS, VSUBPD, VSUBPS_BCST, VSUBPD_BCST},
	"MUL":       {VMULPS, VMULPD, VMULPS_BCST, VMULPD_BCST},
	"DIV":       {VDIVPS, VDIVPD, VDIVPS_BCST, VDIVPD_BCST},
	"MAX":       {VMAXPS, VMAXPD, VMAXPS_BCST, VMAXPD_BCST},
	"MIN":       {VMINPS, VMINPD, VMINPS_BCST, VMINPD_BCST},
	"AND":       {VANDPS, VANDPD, VANDPS_BCST, VANDPD_BCST},
	"ANDN":      {VANDNPS, VANDNPD, VANDNPS_BCST, VANDNPD_BCST},
	"OR":        {VORPS, VORPD, VORPS_BCST, VORPD_BCST},
	"XOR":       {VXORPS, VXORPD, VXORPS_BCST, VXORPD_BCST},
	"FMADD213":  {VFMADD213PS, VFMADD213PD, VFMADD213PS_BCST, VFMADD213PD_BCST},
	"FMADD231":  {VFMADD231PS, VFMADD231PD, VFMADD231PS_BCST, VFMADD231PD_BCST},
	"FNMADD213": {VFNMADD213PS, VFNMADD213PD, VFNMADD213PS_BCST, VFNMADD213PD_BCST},
	"CMP":       {VCMPPS, VCMPPD, VCMPPS_BCST, VCMPPD_BCST},
	"SHL":       {VPSLLD, VPSLLQ},
	"RANGE":     {nil, nil, VRANGEPS_BCST, VRANGEPD_BCST},
	"TERNLOG":   {nil, nil, VPTERNLOGD_BCST, VPTERNLOGQ_BCST},
}

func (k *kernel) do(name string, args ...operand.Op) {
	form := 0
	if k.double {
		form = 1
	}
	for i, a := range args {
		if c, ok := a.(constant); ok {
			args[i] = c.Mem
			if k.wide {
				form += 2
			}
		}
	}
	instructions[name][form](args...)
	k.pause()
}

// new appends an operation that writes to a new register.
func (k *kernel) new(name string, args ...operand.Op) reg.VecVirtual {
	dst := k.vec()
	k.do(name, append(args, dst)...)
	return dst
}

// load brings a constant or a scalar argument into a register.
func (k *kernel) load(c operand.Op) reg.VecVirtual {
	dst := k.vec()
	broadcast := VBROADCASTSS
	if k.double {
		broadcast = VBROADCASTSD
	}
	if t, ok := c.(constant); ok {
		c = t.Mem
	}
	broadcast(c, dst)
	k.pause()
	return dst
}

func (k *kernel) scalar(name string) operand.Mem {
	b, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return b.Addr
}

// read loads a vector. Elements past the end are 0.
func (k *kernel) read(m operand.Mem) reg.VecVirtual {
	dst := k.vec()
	switch {
	case k.tail == nil:
		VMOVUPS(m, dst)
	case k.wide && k.double:
		VMOVUPD_Z(m, k.tail, dst)
	case k.wide:
		VMOVUPS_Z(m, k.tail, dst)
	case k.double:
		VMASKMOVPD(m, k.tail, dst)
	default:
		VMASKMOVPS(m, k.tail, dst)
	}
	k.pause()
	return dst
}

func (k *kernel) write(v reg.VecVirtual, m operand.Mem) {
	switch {
	case k.tail == nil:
		VMOVUPS(v, m)
	case k.wide && k.double:
		VMOVUPD(v, k.tail, m)
	case k.wide:
		VMOVUPS(v, k.tail, m)
	case k.double:
		VMASKMOVPD(v, k.tail, m)
	default:
		VMASKMOVPS(v, k.tail, m)
	}
	k.pause()
}

// sign returns the mask of the elements whose sign bit is set.
func (k *kernel) sign(v reg.VecVirtual) operand.Op {
	if !k.wide {
		return v // VBLENDV uses the sign bits
	}
	mask := K()
	if k.double {
		VPMOVQ2M(v, mask)
	} else {
		VPMOVD2M(v, mask)
	}
	k.pause()
	return mask
}

const ( // predicates of VCMP
	equal    = operand.U8(0)
	less     = operand.U8(1)
	notAbove = operand.U8(10)
)

// compare returns the mask of v PREDICATE c.
func (k *kernel) compare(predicate operand.U8, c operand.Op, v reg.VecVirtual) operand.Op {
	if !k.wide {
		return k.new("CMP", predicate, c, v)
	}
	mask := K()
	k.do("CMP", predicate, c, v, mask)
	return mask
}

// choose returns yes where the mask is set and no elsewhere. It overwrites no.
func (k *kernel) choose(mask operand.Op, yes, no reg.VecVirtual) reg.VecVirtual {
	switch {
	case k.wide && k.double:
		VMOVAPD(yes, mask, no)
	case k.wide:
		VMOVAPS(yes, mask, no)
	case k.double:
		VBLENDVPD(mask, yes, no, no)
	default:
		VBLENDVPS(mask, yes, no, no)
	}
	k.pause()
	return no
}

// polynomial is Horner's rule with fused operations, separately for the even and the odd powers.
// This halves the latency for one more multiplication, the square, which callers need anyway.
func (k *kernel) polynomial(name string, x, square reg.VecVirtual, single, double []float64) reg.VecVirtual {
	coefficients := single
	if k.double {
		coefficients = double
	}
	var halves [2]reg.VecVirtual // of the even powers and of the odd
	for i, c := range coefficients {
		c := k.constant(fmt.Sprintf("%s%d_", name, i), c)
		power := len(coefficients) - 1 - i
		if half := &halves[power%2]; *half == nil {
			*half = k.load(c)
		} else {
			k.do("FMADD213", c, square, *half)
		}
	}
	k.do("FMADD213", halves[0], x, halves[1])
	return halves[1]
}

// exponential returns exp(-|x|), or 0 where this is below about 2^-126 (2^-1022).
func (k *kernel) exponential(x reg.VecVirtual) reg.VecVirtual {
	// With this bound, the n below is at least -127 (-1023), whose power of two becomes 0.
	bound, shift, bias := 88.0, 23, 127.0
	if k.double {
		bound, shift, bias = 709, 52, 1023
	}
	if k.wide {
		const minAbsNegative = operand.U8(0xe)
		x = k.new("RANGE", minAbsNegative, k.constant("expBound", bound), x)
	} else {
		x = k.new("OR", k.constant("signBit", math.Copysign(0, -1)), x)
		k.do("MAX", k.constant("expLeast", -bound), x, x)
	}
	// Adding 1.5*2^shift leaves round(x/ln2) in the low bits of the sum. Including the bias turns
	// these bits into the exponent of 2^n, which is 0 for the least n.
	magic := k.constant("expMagic", 1.5*math.Ldexp(1, shift)+bias)
	t := k.load(magic)
	k.do("FMADD231", k.constant("log2e", math.Log2E), x, t)
	n := k.new("SUB", magic, t)
	if k.double { // n*ln2 in two parts, the first exact: 32 bits
		k.do("FMADD231", k.constant("minusLn2", -6.93147180369123816490e-01), n, x)
		k.do("FMADD231", k.constant("minusLn2low", -1.90821492927058770002e-10), n, x)
	} else { // float32(ln2) is 1.9e-9 too large: 4 eps at n = 127, below 1 eps for typical scores
		k.do("FMADD231", k.constant("minusLn2", -math.Ln2), n, x)
	}
	k.do("SHL", operand.U8(shift), t, t)
	p := k.expm1(x)
	k.do("FMADD213", t, t, p) // (exp(r)-1) 2^n + 2^n: one rounding
	return p
}

// expm1 returns exp(r)-1 for |r| <= ln(2)/2.
func (k *kernel) expm1(r reg.VecVirtual) reg.VecVirtual {
	square := k.new("MUL", r, r)
	q := k.polynomial("exp", r, square, exp32, exp64)
	k.do("FMADD213", r, square, q)
	return q
}

// twoSub returns a-b and its exact rounding error (Knuth).
func (k *kernel) twoSub(a, b reg.VecVirtual) (hi, lo reg.VecVirtual) {
	hi = k.new("SUB", b, a)
	bb := k.new("SUB", a, hi) // -b as used in the rounded result
	aa := k.new("SUB", bb, hi)
	lo = k.new("SUB", aa, a)
	k.do("ADD", b, bb, bb)
	k.do("SUB", bb, lo, lo)
	return hi, lo
}

// flip returns v with its sign changed where the sign of by is set, or where it is not set. It
// overwrites v on AVX-512, where one instruction combines three operands.
func (k *kernel) flip(v, by reg.VecVirtual, set bool) reg.VecVirtual {
	signBit := k.constant("signBit", math.Copysign(0, -1))
	if k.wide {
		const xorAnd, xorAndNot = operand.U8(0x78), operand.U8(0xd2)
		table := xorAndNot
		if set {
			table = xorAnd
		}
		k.do("TERNLOG", table, signBit, by, v)
		return v
	}
	s := k.load(signBit)
	if set {
		k.do("AND", by, s, s)
	} else {
		k.do("ANDN", s, by, s)
	}
	k.do("XOR", v, s, s)
	return s
}

func (k *kernel) reward() {
	tier, float := "AVX2", "float32"
	if k.wide {
		tier = "AVX512"
	}
	if k.double {
		float = "float64"
	}
	name := fmt.Sprintf("rewardBlock%s%s", tier, map[bool]string{false: "F32", true: "F64"}[k.double])
	TEXT(name, NOSPLIT, fmt.Sprintf("func(losses, gradChosen, gradRejected, chosen, rejected, delta *%[1]s, n, step int, scale, smoothing, center %[1]s) (sum float64)", float))
	Doc(name+" is, for n pairs, any of the three destinations nil, and step 0 or "+fmt.Sprint(k.bytes())+":",
		"",
		"\tfor i := range n {",
		"\t\tloss, g := PairLoss(chosen[i]-rejected[i], delta[i], smoothing)",
		"\t\ttotal := chosen[i] + rejected[i]",
		"\t\tloss += center * total * total",
		"\t\tsum += loss",
		"\t\tlosses[i] = loss",
		"\t\tgradChosen[i] = (2*center*total + g) * scale",
		"\t\tgradRejected[i] = (2*center*total - g) * scale",
		"\t}",
		"",
		"With step 0, delta is one vector that serves all pairs. The sum is NaN or",
		"infinite if some delta is not greater than 0 or some loss is not finite;",
		"the destinations are then undefined.")
	Pragma("noescape")

	pointer := map[string]reg.Register{}
	for _, p := range []string{"losses", "gradChosen", "gradRejected", "chosen", "rejected", "delta"} {
		pointer[p] = Load(Param(p), GP64())
	}
	n := Load(Param("n"), GP64())
	pointer["step"] = Load(Param("step"), GP64())
	at := GP64()
	XORQ(at, at)
	acc, few := k.zero(), k.zero()
	least := k.load(k.constant("one", 1))

	turn := func(label, end string, lanes int) {
		Label(label)
		CMPQ(n, operand.Imm(uint64(lanes*k.bytes()/k.elem())))
		JLT(operand.LabelRef(end))
		k.interleave(lanes, func(k *kernel) { k.body(label, pointer, at, few, least) })
		ADDQ(operand.Imm(uint64(lanes*k.bytes())), at)
		for range lanes {
			ADDQ(pointer["step"], pointer["delta"])
		}
		SUBQ(operand.Imm(uint64(lanes*k.bytes()/k.elem())), n)
		TESTQ(operand.U32(8*k.bytes()-1), at)
		JNZ(operand.LabelRef(label))
		k.flush(few, acc)
		k.do("XOR", few, few, few)
		JMP(operand.LabelRef(label))
	}
	if k.wide { // AVX2 does not have enough registers
		turn("twice", "once", 2)
	}
	turn("once", "tail", 1)

	Label("tail")
	TESTQ(n, n)
	JZ(operand.LabelRef("done"))
	k.setTail(n)
	k.body("tail", pointer, at, few, least)

	Label("done")
	k.flush(few, acc)
	result, err := ReturnIndex(0).Resolve()
	if err != nil {
		panic(err)
	}
	bad := GP32()
	mask := k.compare(notAbove, k.zero(), least)
	switch {
	case k.wide:
		KMOVW(mask, bad)
	case k.double:
		VMOVMSKPD(mask, bad)
	default:
		VMOVMSKPS(mask, bad)
	}
	if k.wide {
		high := YMM()
		VEXTRACTF64X4(operand.Imm(1), acc, high)
		VADDPD(high, acc.AsY(), acc.AsY())
	}
	high := XMM()
	VEXTRACTF128(operand.Imm(1), acc.AsY(), high)
	VADDPD(high, acc.AsX(), acc.AsX())
	VPERMILPD(operand.Imm(1), acc.AsX(), high)
	VADDSD(high, acc.AsX(), acc.AsX())
	VMOVSD(acc.AsX(), result.Addr)
	VZEROUPPER()
	TESTL(bad, bad)
	JZ(operand.LabelRef("return"))
	nan := GP64()
	MOVQ(operand.U64(math.Float64bits(math.NaN())), nan)
	MOVQ(nan, result.Addr)
	Label("return")
	RET()
	k.tail = nil
}

// zero is loaded, because avo treats a register that is cleared by XOR as an input.
func (k *kernel) zero() reg.VecVirtual { return k.load(k.constant("zero", 0)) }

// setTail computes the mask of the last n elements.
func (k *kernel) setTail(n reg.Register) {
	if k.wide {
		bit, mask := GP64(), K()
		MOVQ(operand.I32(1), bit)
		MOVQ(n, reg.RCX)
		SHLQ(reg.CL, bit)
		DECQ(bit)
		KMOVW(bit.As32(), mask)
		k.tail = mask
		return
	}
	// A window that slides over a vector of ones followed by a vector of zeros.
	name := fmt.Sprintf("tailMask%d", 8*k.elem())
	table, ok := constants[name]
	if !ok {
		table = constant{GLOBL(name, RODATA|NOPTR)}
		for i := range 8 {
			DATA(8*i, operand.U64(map[bool]uint64{true: math.MaxUint64, false: 0}[i < 4]))
		}
		constants[name] = table
	}
	address, mask := GP64(), YMM()
	LEAQ(table.Offset(32), address)
	MOVQ(n, reg.RCX)
	NEGQ(reg.RCX)
	VMOVUPS(operand.Mem{Base: address, Index: reg.RCX, Scale: uint8(k.elem())}, mask)
	k.tail = mask
}

// body writes the code for one vector of pairs.
//
// With u = exp(-|m|), v = exp(-|over|), over = m-delta and s = u+v+uv, the loss is
//
//	max(-m, over, 0) + log1p(u) + log1p(v),  the logarithms being log1p(s) = 2 atanh(s/(2+s)), s <= 3,
//
// and the derivative g, over the denominator (1+u)(1+v) = 1+s,
//
//	v - u      for 0 <= m < delta, also u expm1(2m-delta)
//	uv - 1     for m < 0
//	1 - uv     for m >= delta
func (k *kernel) body(label string, pointer map[string]reg.Register, at reg.Register, few, least reg.VecVirtual) {
	single := !k.double
	one := k.constant("one", 1)
	infinity := k.constant("inf", math.Inf(1))
	signBit := k.constant("signBit", math.Copysign(0, -1))

	mem := func(p string) operand.Mem {
		return operand.Mem{Base: pointer[p], Index: at, Scale: 1, Disp: k.lane * k.bytes()}
	}
	readDelta := func() reg.VecVirtual {
		m := operand.Mem{Base: pointer["delta"]}
		if k.lane == 1 {
			m.Index, m.Scale = pointer["step"], 1
		}
		d := k.read(m)
		if k.tail != nil { // an element that does not exist is not an invalid delta
			d = k.choose(k.tail, d, k.load(one))
		}
		return d
	}
	// jumpOver surrounds code with a jump, once for all vectors of an iteration.
	jumpOver := func(label string, jump, code func()) {
		if k.lane == 0 {
			jump()
		}
		k.pause()
		code()
		if k.lane == 0 {
			Label(label)
		}
		k.pause()
	}
	// ifSet is for code that is unnecessary if a scalar argument is 0.
	ifSet := func(argument, label string, code func()) {
		jumpOver(label, func() {
			if single {
				CMPL(k.scalar(argument), operand.Imm(0))
			} else {
				CMPQ(k.scalar(argument), operand.Imm(0))
			}
			JE(operand.LabelRef(label))
		}, code)
	}
	ifGiven := func(destination, label string, code func()) {
		jumpOver(label, func() {
			TESTQ(pointer[destination], pointer[destination])
			JZ(operand.LabelRef(label))
		}, code)
	}

	// In float32, m and over carry their rounding errors, because exp turns an absolute error
	// into a relative one, and because g is a difference near its zero.
	var m, mLow, over, overLow reg.VecVirtual
	d := readDelta()
	k.do("MIN", least, d, least) // the first operand wins over a NaN, which shows in the sum
	// +Inf would make the error NaN, and for such a large delta v is 0 anyway.
	huge := math.MaxFloat64
	if single {
		huge = math.MaxFloat32
	}
	d = k.new("MIN", d, k.load(k.constant("huge", huge)))
	chosen, rejected := k.read(mem("chosen")), k.read(mem("rejected"))
	if single {
		m, mLow = k.twoSub(chosen, rejected)
		var high reg.VecVirtual
		high, overLow = k.twoSub(m, d)
		k.do("ADD", mLow, overLow, overLow)
		// If m is large and near delta, mLow is not small compared with high: renormalize.
		over = k.new("ADD", overLow, high)
		k.do("SUB", high, over, high)
		k.do("SUB", high, overLow, overLow)
	} else {
		m = k.new("SUB", rejected, chosen)
		over = k.new("SUB", d, m)
	}
	h := m
	if single { // 2m - delta, before the low parts are overwritten
		h = k.new("ADD", over, m)
		k.do("ADD", mLow, h, h)
		k.do("ADD", overLow, h, h)
	}
	exponential := func(x, low reg.VecVirtual) reg.VecVirtual {
		e := k.exponential(x)
		if single { // exp(-|x+low|) = exp(-|x|) (1 -+ low)
			low = k.flip(low, x, false)
			k.do("FMADD213", e, e, low)
			return low
		}
		return e
	}
	u := exponential(m, mLow)
	v := exponential(over, overLow)
	s := k.new("ADD", u, v)
	k.do("FMADD231", u, v, s)

	z := k.new("ADD", k.constant("two", 2), s)
	k.do("DIV", z, s, z)
	t := k.new("MUL", z, z)
	p := k.polynomial("atanh", t, k.new("MUL", t, t), atanh32, atanh64)
	loss := k.load(signBit)
	k.do("XOR", m, loss, loss)
	k.do("MAX", over, loss, loss)
	k.do("MAX", loss, k.zero(), loss)
	k.do("FMADD231", p, z, loss)

	ifSet("smoothing", "smoothed"+label, func() { // e*delta, or e*m without a finite delta
		d := readDelta()
		d = k.choose(k.compare(equal, infinity, d), m, d)
		k.do("FMADD231", k.load(k.scalar("smoothing")), d, loss)
	})
	ifSet("center", "centered"+label, func() {
		total := k.new("ADD", k.read(mem("rejected")), k.read(mem("chosen")))
		c := k.new("MUL", k.load(k.scalar("center")), total)
		k.do("FMADD231", c, total, loss)
	})
	ifGiven("losses", "lossesDone"+label, func() { k.write(loss, mem("losses")) })
	switch {
	case k.tail == nil:
	case k.wide && k.double:
		VMOVUPD_Z(loss, k.tail, loss)
	case k.wide:
		VMOVUPS_Z(loss, k.tail, loss)
	default:
		k.do("AND", k.tail, loss, loss)
	}
	k.do("ADD", loss, few, few)

	ifGiven("gradChosen", "gradDone"+label, func() {
		inside := k.new("SUB", u, v)
		if single {
			near := k.compare(less, k.constant("expm1Range", 0.34), k.absolute(h))
			e := k.expm1(h)
			k.do("MUL", u, e, e)
			inside = k.choose(near, e, inside)
		}
		k.do("FNMADD213", one, u, v) // 1 - uv
		outside := k.flip(v, m, true)
		between := k.sign(k.new("XOR", m, over))
		g := k.choose(between, inside, outside)
		k.do("ADD", one, s, s)
		k.do("DIV", s, g, g)
		ifSet("smoothing", "smoothedGrad"+label, func() {
			free := k.compare(equal, infinity, readDelta())
			k.do("ADD", k.choose(free, k.load(k.scalar("smoothing")), k.zero()), g, g)
		})
		scale := k.load(k.scalar("scale"))
		k.do("MUL", scale, g, g)
		negative := k.load(signBit)
		k.do("XOR", g, negative, negative)
		ifSet("center", "centeredGrad"+label, func() {
			pull := k.new("ADD", k.read(mem("rejected")), k.read(mem("chosen")))
			center := k.load(k.scalar("center"))
			k.do("ADD", center, center, center)
			k.do("MUL", scale, center, center)
			k.do("MUL", center, pull, pull)
			k.do("ADD", pull, g, g)
			k.do("ADD", pull, negative, negative)
		})
		k.write(g, mem("gradChosen"))
		k.write(negative, mem("gradRejected"))
	})
}

func (k *kernel) absolute(x reg.VecVirtual) reg.VecVirtual {
	s := k.load(k.constant("signBit", math.Copysign(0, -1)))
	k.do("ANDN", x, s, s)
	return s
}

// flush adds few, which holds sums of at most 9 losses, to acc, which is float64 for both
// precisions.
func (k *kernel) flush(few, acc reg.VecVirtual) {
	if k.double {
		VADDPD(few, acc, acc)
		return
	}
	low, high := k.vec(), k.vec()
	if k.wide {
		VCVTPS2PD(few.AsY(), low)
		VEXTRACTF64X4(operand.Imm(1), few, high.AsY())
		VCVTPS2PD(high.AsY(), high)
	} else {
		VCVTPS2PD(few.AsX(), low)
		VEXTRACTF128(operand.Imm(1), few, high.AsX())
		VCVTPS2PD(high.AsX(), high)
	}
	VADDPD(high, low, low)
	VADDPD(low, acc, acc)
}
