// Command asmgen writes the assembly of package pcrm. It is a module of its own so
// that users of pcrm do not get avo.
//
// Each kernel is one instance of the same program for a register width (AVX2: 32
// bytes, AVX-512: 64) and a precision; where they differ, the comment says why.
package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	ConstraintExpr("amd64,!purego")
	for _, wide := range []bool{false, true} {
		for _, double := range []bool{false, true} {
			(&kernel{wide: wide, double: double}).reward()
		}
	}
	firstDifference()
	firstEqual()
	Generate()
}

// Near-minimax polynomials (Chebyshev interpolation at 50 digits, then rounded),
// highest power first. The error is the largest of the whole function, relative,
// before the rounding of its evaluation.
var (
	// q in exp(r) = 1 + r + r^2 q(r), |r| <= ln(2)/2: 1.1e-8 and 1.2e-15.
	exp32 = []float64{0.0013926213141530752, 0.008363203145563602, 0.041666556149721146, 0.16666576266288757, 0.5}
	exp64 = []float64{2.7613852100963253e-07, 2.7625169883520667e-06, 2.480153630713628e-05, 0.00019841208634639135,
		0.0013888888905922382, 0.00833333335377842, 0.04166666666665131, 0.1666666666664823, 0.5}

	// p in atanh(z) = z + z t p(t) with t = z^2 <= 0.36: 1.3e-8 and 1.1e-14.
	atanh32 = []float64{0.24237778782844543, -0.03191317245364189, 0.12063311040401459, 0.1071353629231453,
		0.14310400187969208, 0.19999435544013977, 0.3333333432674408}
	atanh64 = []float64{0.46909522449626956, -0.5978238721303549, 0.5014479935413302, -0.15035468608316055,
		0.10839968391953818, 0.048264445960786294, 0.06801603342818693, 0.07680867405370997, 0.09091527011845414,
		0.1111109136698681, 0.14285714611852915, 0.19999999997892712, 0.3333333333333558}
)

// kernel is the state of one instance while its body is written.
type kernel struct {
	wide, double bool

	tail operand.Op // the mask of the elements that exist, nil for a full vector
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

// constant is a table of equal elements: AVX2 reads all of it, AVX-512 broadcasts
// the first.
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
	"ADD":      {VADDPS, VADDPD, VADDPS_BCST, VADDPD_BCST},
	"SUB":      {VSUBPS, VSUBPD, VSUBPS_BCST, VSUBPD_BCST},
	"MUL":      {VMULPS, VMULPD, VMULPS_BCST, VMULPD_BCST},
	"DIV":      {VDIVPS, VDIVPD, VDIVPS_BCST, VDIVPD_BCST},
	"MAX":      {VMAXPS, VMAXPD, VMAXPS_BCST, VMAXPD_BCST},
	"MIN":      {VMINPS, VMINPD, VMINPS_BCST, VMINPD_BCST},
	"AND":      {VANDPS, VANDPD, VANDPS_BCST, VANDPD_BCST},
	"ANDN":     {VANDNPS, VANDNPD, VANDNPS_BCST, VANDNPD_BCST},
	"OR":       {VORPS, VORPD, VORPS_BCST, VORPD_BCST},
	"XOR":      {VXORPS, VXORPD, VXORPS_BCST, VXORPD_BCST},
	"FMADD213": {VFMADD213PS, VFMADD213PD, VFMADD213PS_BCST, VFMADD213PD_BCST},
	"FMADD231": {VFMADD231PS, VFMADD231PD, VFMADD231PS_BCST, VFMADD231PD_BCST},
	"CMP":      {VCMPPS, VCMPPD, VCMPPS_BCST, VCMPPD_BCST},
	"BLENDM":   {VBLENDMPS, VBLENDMPD, VBLENDMPS_BCST, VBLENDMPD_BCST},
	"SHL":      {VPSLLD, VPSLLQ},
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
}

// new appends an operation whose result is a new register.
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
	return dst
}

func (k *kernel) copy(v reg.VecVirtual) reg.VecVirtual {
	dst := k.vec()
	VMOVAPS(v, dst)
	return dst
}

func (k *kernel) scalar(name string) operand.Mem {
	b, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return b.Addr
}

// read loads a vector; elements past the end read as 0.
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
}

// sign returns the mask of the elements whose sign bit is set.
func (k *kernel) sign(v reg.VecVirtual) operand.Op {
	if !k.wide {
		return v // VBLENDV looks at sign bits
	}
	mask := K()
	if k.double {
		VPMOVQ2M(v, mask)
	} else {
		VPMOVD2M(v, mask)
	}
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

// choose returns yes where the mask is set, else no.
func (k *kernel) choose(mask, yes operand.Op, no reg.VecVirtual) reg.VecVirtual {
	if k.wide {
		return k.new("BLENDM", yes, no, mask)
	}
	dst := k.vec()
	if c, ok := yes.(constant); ok {
		yes = c.Mem
	}
	if k.double {
		VBLENDVPD(mask, yes, no, dst)
	} else {
		VBLENDVPS(mask, yes, no, dst)
	}
	return dst
}

// polynomial is Horner's rule, with fused operations.
func (k *kernel) polynomial(name string, x reg.VecVirtual, single, double []float64) reg.VecVirtual {
	coefficients := single
	if k.double {
		coefficients = double
	}
	p := k.load(k.constant(name+"0_", coefficients[0]))
	for i, c := range coefficients[1:] {
		k.do("FMADD213", k.constant(fmt.Sprintf("%s%d_", name, i+1), c), x, p)
	}
	return p
}

// exponential returns exp(x) for x <= 0, 0 where it is under about 2^-126 (2^-1022),
// NaN for NaN.
func (k *kernel) exponential(x reg.VecVirtual) reg.VecVirtual {
	least, shift, bias := -88.0, 23, 127.0
	ln2hi := float64(float32(0.693145751953125)) // 15 bits: n*ln2hi is exact
	if k.double {
		least, shift, bias = -709.5, 52, 1023
		ln2hi = 6.93147180369123816490e-01 // 33 bits
	}
	// MAX and MIN return their first operand when one is NaN, so x goes there.
	x = k.new("MAX", x, k.load(k.constant("expLeast", least)))
	// Adding 1.5*2^shift leaves round(x/ln2) in the low bits of the sum; bias with it
	// makes those bits the exponent of 2^n, which is 0 for the least n.
	magic := k.constant("expMagic", 1.5*math.Ldexp(1, shift)+bias)
	t := k.load(magic)
	k.do("FMADD231", k.constant("log2e", math.Log2E), x, t)
	n := k.new("SUB", magic, t)
	k.do("FMADD231", k.constant("minusLn2hi", -ln2hi), n, x)
	k.do("FMADD231", k.constant("minusLn2lo", ln2hi-math.Ln2), n, x)
	k.do("SHL", operand.U8(shift), t, t)
	p := k.expm1(x)
	k.do("FMADD213", t, t, p) // (exp(r)-1) 2^n + 2^n: one rounding
	return p
}

// expm1 returns exp(r)-1 for |r| <= ln(2)/2.
func (k *kernel) expm1(r reg.VecVirtual) reg.VecVirtual {
	q := k.polynomial("exp", r, exp32, exp64)
	k.do("MUL", r, q, q)
	k.do("FMADD213", r, r, q)
	return q
}

// twoSub returns a-b and, exactly, the rounding error of it (Knuth).
func (k *kernel) twoSub(a, b reg.VecVirtual) (hi, lo reg.VecVirtual) {
	hi = k.new("SUB", b, a)
	bb := k.new("SUB", a, hi) // -b as it was seen
	aa := k.new("SUB", bb, hi)
	lo = k.new("SUB", aa, a)
	k.do("ADD", b, bb, bb)
	k.do("SUB", bb, lo, lo)
	return hi, lo
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
	at := GP64()
	XORQ(at, at)
	mem := func(p string) operand.Mem { return operand.Mem{Base: pointer[p], Index: at, Scale: 1} }

	acc := k.vec()
	VXORPS(acc.AsX(), acc.AsX(), acc.AsX())
	least := k.load(k.constant("one", 1))

	Label("loop")
	CMPQ(n, operand.Imm(uint64(k.bytes()/k.elem())))
	JLT(operand.LabelRef("tail"))
	k.body("", pointer, mem, acc, least)
	ADDQ(operand.Imm(uint64(k.bytes())), at)
	ADDQ(k.scalar("step"), pointer["delta"])
	SUBQ(operand.Imm(uint64(k.bytes()/k.elem())), n)
	JMP(operand.LabelRef("loop"))

	Label("tail")
	TESTQ(n, n)
	JZ(operand.LabelRef("done"))
	k.setTail(n)
	k.body("tail", pointer, mem, acc, least)

	Label("done")
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

func (k *kernel) zero() reg.VecVirtual {
	z := k.vec()
	VXORPS(z.AsX(), z.AsX(), z.AsX())
	return z
}

// setTail makes the mask of the last n elements.
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
	// A window that slides over as many ones and then zeros as a vector has bits.
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
// It uses a/b = exp(2m-delta) for the two parts a-b of the gradient's numerator:
//
//	0 <= m < delta:  g (1+u)(1+v) = v - u     with u = exp(-|m|), v = exp(-|m-delta|)
//	m < 0:           g (1+u)(1+v) = uv - 1
//	m >= delta:      g (1+u)(1+v) = 1 - uv
//
// and log1p(u) + log1p(v) = log1p(u+v+uv) = 2 atanh(s/(2+s)) with s = u+v+uv <= 3.
func (k *kernel) body(label string, pointer map[string]reg.Register, mem func(string) operand.Mem, acc, least reg.VecVirtual) {
	single := !k.double
	one := k.constant("one", 1)
	signBit := k.constant("signBit", math.Copysign(0, -1))

	readDelta := func() reg.VecVirtual {
		d := k.read(operand.Mem{Base: pointer["delta"]})
		if k.tail != nil { // an element that does not exist is no bad delta
			d = k.choose(k.tail, d, k.load(one))
		}
		return d
	}

	// The margin m and how far it is over the ceiling. In float32 both carry their
	// rounding error, because exp makes an absolute error a relative one.
	var m, mLow, over, overLow, h reg.VecVirtual
	d := readDelta()
	k.do("MIN", least, d, least) // a NaN shows in the sum
	// +Inf would make NaN of the error; from 2^126 on v is 0 anyway.
	huge := 126
	if k.double {
		huge = 1022
	}
	d = k.new("MIN", d, k.load(k.constant("huge", math.Ldexp(1, huge))))
	chosen, rejected := k.read(mem("chosen")), k.read(mem("rejected"))
	if single {
		m, mLow = k.twoSub(chosen, rejected)
		var high reg.VecVirtual
		high, overLow = k.twoSub(m, d)
		k.do("ADD", mLow, overLow, overLow)
		// When m is large and near delta, mLow is not small beside high: renormalise.
		over = k.new("ADD", overLow, high)
		k.do("SUB", high, over, high)
		k.do("SUB", high, overLow, overLow)
	} else {
		m = k.new("SUB", rejected, chosen)
		over = k.new("SUB", d, m)
	}

	// u = exp(-|m|), to which the low part of m is a factor 1 -+ mLow.
	exponential := func(x, low reg.VecVirtual) reg.VecVirtual {
		e := k.exponential(k.new("OR", signBit, x))
		if single {
			s := k.load(signBit)
			k.do("ANDN", s, x, s)
			k.do("XOR", low, s, s)
			k.do("FMADD213", e, e, s)
			return s
		}
		return e
	}
	u := exponential(m, mLow)
	v := exponential(over, overLow)
	uv := k.new("MUL", u, v)
	s := k.new("ADD", u, v)
	k.do("ADD", uv, s, s)

	// loss = max(-m, over, 0) + log1p(s): the first two are never positive together.
	z := k.new("ADD", k.constant("two", 2), s)
	k.do("DIV", z, s, z)
	t := k.new("MUL", z, z)
	p := k.polynomial("atanh", t, atanh32, atanh64)
	k.do("MUL", t, p, p)
	k.do("ADD", z, z, z)
	k.do("FMADD213", z, z, p)
	linear := k.load(signBit)
	k.do("XOR", m, linear, linear)
	k.do("MAX", over, linear, linear)
	k.do("MAX", linear, k.zero(), linear)
	loss := k.new("ADD", linear, p)

	hasSmoothing := operand.LabelRef("smoothed" + label)
	if single {
		CMPL(k.scalar("smoothing"), operand.Imm(0))
	} else {
		CMPQ(k.scalar("smoothing"), operand.Imm(0))
	}
	JE(hasSmoothing)
	{ // e*delta, or e*m where there is no delta
		d := readDelta()
		free := k.compare(equal, k.constant("inf", math.Inf(1)), d)
		d = k.choose(free, m, d)
		k.do("FMADD231", k.load(k.scalar("smoothing")), d, loss)
	}
	Label("smoothed" + label)

	if single {
		CMPL(k.scalar("center"), operand.Imm(0))
	} else {
		CMPQ(k.scalar("center"), operand.Imm(0))
	}
	JE(operand.LabelRef("centered" + label))
	{
		total := k.new("ADD", k.read(mem("rejected")), k.read(mem("chosen")))
		c := k.new("MUL", k.load(k.scalar("center")), total)
		k.do("FMADD231", c, total, loss)
	}
	Label("centered" + label)

	k.accumulate(loss, acc)
	TESTQ(pointer["losses"], pointer["losses"])
	JZ(operand.LabelRef("lossesDone" + label))
	k.write(loss, mem("losses"))
	Label("lossesDone" + label)

	TESTQ(pointer["gradChosen"], pointer["gradChosen"])
	JZ(operand.LabelRef("gradDone" + label))
	low, under := k.sign(m), k.sign(over)
	ones := k.load(one)
	a := k.choose(under, k.choose(low, uv, v), ones)
	b := k.choose(low, one, k.choose(under, u, uv))
	g := k.new("SUB", b, a)
	if single {
		// Near the target a and b cancel: b expm1(2m-delta) keeps the precision.
		h = k.new("ADD", over, m)
		k.do("ADD", mLow, h, h)
		k.do("ADD", overLow, h, h)
		size := k.load(signBit)
		k.do("ANDN", h, size, size)
		near := k.compare(less, k.constant("expm1Range", 0.34), size)
		k.do("MUL", k.expm1(h), b, b)
		g = k.choose(near, b, g)
	}
	k.do("ADD", one, s, s)
	k.do("DIV", s, g, g)
	if single {
		CMPL(k.scalar("smoothing"), operand.Imm(0))
	} else {
		CMPQ(k.scalar("smoothing"), operand.Imm(0))
	}
	JE(operand.LabelRef("smoothedGrad" + label))
	{
		free := k.compare(equal, k.constant("inf", math.Inf(1)), readDelta())
		e := k.choose(free, k.load(k.scalar("smoothing")), k.zero())
		k.do("ADD", e, g, g)
	}
	Label("smoothedGrad" + label)
	scale := k.load(k.scalar("scale"))
	k.do("MUL", scale, g, g)
	pull := k.new("ADD", k.read(mem("rejected")), k.read(mem("chosen")))
	center := k.load(k.scalar("center"))
	k.do("ADD", center, center, center)
	k.do("MUL", scale, center, center)
	k.do("MUL", center, pull, pull)
	k.write(k.new("ADD", g, pull), mem("gradChosen"))
	k.write(k.new("SUB", g, pull), mem("gradRejected"))
	Label("gradDone" + label)
}

// accumulate adds the losses to acc, in float64 for both precisions.
func (k *kernel) accumulate(loss, acc reg.VecVirtual) {
	if k.tail != nil {
		if k.wide && k.double {
			VMOVUPD_Z(loss, k.tail, loss)
		} else if k.wide {
			VMOVUPS_Z(loss, k.tail, loss)
		} else {
			VANDPS(k.tail, loss, loss)
		}
	}
	if k.double {
		VADDPD(loss, acc, acc)
		return
	}
	low, high := k.vec(), k.vec()
	if k.wide {
		VCVTPS2PD(loss.AsY(), low)
		VEXTRACTF64X4(operand.Imm(1), loss, high.AsY())
		VCVTPS2PD(high.AsY(), high)
	} else {
		VCVTPS2PD(loss.AsX(), low)
		VEXTRACTF128(operand.Imm(1), loss, high.AsX())
		VCVTPS2PD(high.AsX(), high)
	}
	VADDPD(high, low, low)
	VADDPD(low, acc, acc)
}
