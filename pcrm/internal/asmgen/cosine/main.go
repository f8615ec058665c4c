// Command cosine writes the assembly of package prior: the products of a cosine.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// ahead is the distance in bytes at which a row's elements are prefetched. The processor's
// own prefetcher stops at the end of a page, which is only two or three rows of an embedding
// away.
const ahead = 2048

func main() {
	ConstraintExpr("amd64,!purego")
	products()
	Generate()
}

// products uses only AVX2, because memory is already slower than that. It keeps four sums of
// each kind, because an addition takes four cycles and two begin in each cycle.
func products() {
	TEXT("productsAVX2", NOSPLIT, "func(a, b *float32, n int) (ab, aa, bb float64)")
	Doc("productsAVX2 is, added up in another order:",
		"",
		"\tfor i := range n {",
		"\t\tab += float64(a[i]) * float64(b[i])",
		"\t\taa += float64(a[i]) * float64(a[i])",
		"\t\tbb += float64(b[i]) * float64(b[i])",
		"\t}")
	Pragma("noescape")
	a, b, n := Load(Param("a"), GP64()), Load(Param("b"), GP64()), Load(Param("n"), GP64())
	var sums [3][4]reg.VecVirtual
	for i := range sums {
		for j := range sums[i] {
			sums[i][j] = YMM()
			VXORPD(sums[i][j], sums[i][j], sums[i][j])
		}
	}
	x, y := YMM(), YMM()
	Label("sixteen")
	SUBQ(operand.Imm(16), n)
	JL(operand.LabelRef("rest"))
	PREFETCHT0(operand.Mem{Base: a, Disp: ahead})
	PREFETCHT0(operand.Mem{Base: b, Disp: ahead})
	for j := range 4 {
		VCVTPS2PD(operand.Mem{Base: a, Disp: 16 * j}, x)
		VCVTPS2PD(operand.Mem{Base: b, Disp: 16 * j}, y)
		VFMADD231PD(x, y, sums[0][j])
		VFMADD231PD(x, x, sums[1][j])
		VFMADD231PD(y, y, sums[2][j])
	}
	ADDQ(operand.Imm(64), a)
	ADDQ(operand.Imm(64), b)
	JMP(operand.LabelRef("sixteen"))
	Label("rest")
	for _, s := range sums {
		VADDPD(s[0], s[1], s[0])
		VADDPD(s[2], s[3], s[2])
		VADDPD(s[0], s[2], s[0])
		VEXTRACTF128(operand.Imm(1), s[0], x.AsX())
		VADDPD(x.AsX(), s[0].AsX(), s[0].AsX())
		VHADDPD(s[0].AsX(), s[0].AsX(), s[0].AsX())
	}
	ADDQ(operand.Imm(16), n)
	Label("one")
	DECQ(n)
	JL(operand.LabelRef("done"))
	VCVTSS2SD(operand.Mem{Base: a}, x.AsX(), x.AsX())
	VCVTSS2SD(operand.Mem{Base: b}, y.AsX(), y.AsX())
	VFMADD231SD(x.AsX(), y.AsX(), sums[0][0].AsX())
	VFMADD231SD(x.AsX(), x.AsX(), sums[1][0].AsX())
	VFMADD231SD(y.AsX(), y.AsX(), sums[2][0].AsX())
	ADDQ(operand.Imm(4), a)
	ADDQ(operand.Imm(4), b)
	JMP(operand.LabelRef("one"))
	Label("done")
	VZEROUPPER()
	for i, s := range sums {
		Store(s[0].AsX(), ReturnIndex(i))
	}
	RET()
}
