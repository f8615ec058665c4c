// Command ids writes the assembly of package ids: searches of rows of token ids.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// ahead is the distance in bytes at which ids are prefetched. The processor's own prefetcher
// stops at the end of a page.
const ahead = 2048

func main() {
	ConstraintExpr("amd64,!purego")
	firstDifference()
	firstEqual()
	Generate()
}

// firstDifference and firstEqual use only AVX2, which at two loads per cycle is already as fast
// as the cache. firstDifference prefetches elements ahead, which are those of the next rows of
// a column.
func firstDifference() {
	TEXT("firstDifferenceAVX2", NOSPLIT, "func(a, b *int64, n int) int")
	Doc("firstDifferenceAVX2 is:",
		"",
		"\tfor i := range n {",
		"\t\tif a[i] != b[i] {",
		"\t\t\treturn i",
		"\t\t}",
		"\t}",
		"\treturn n")
	Pragma("noescape")
	a, b := Load(Param("a"), GP64()), Load(Param("b"), GP64())
	scan(func(at operand.Mem, v reg.VecVirtual) {
		if at.Disp == 0 {
			PREFETCHT0(operand.Mem{Base: a, Index: at.Index, Scale: 8, Disp: ahead})
			PREFETCHT0(operand.Mem{Base: b, Index: at.Index, Scale: 8, Disp: ahead})
		}
		VMOVDQU(operand.Mem{Base: a, Index: at.Index, Scale: 8, Disp: at.Disp}, v)
		VPCMPEQQ(operand.Mem{Base: b, Index: at.Index, Scale: 8, Disp: at.Disp}, v, v)
	}, func(index reg.Register, found operand.LabelRef) {
		x := GP64()
		MOVQ(operand.Mem{Base: a, Index: index, Scale: 8}, x)
		CMPQ(x, operand.Mem{Base: b, Index: index, Scale: 8})
		JNE(found)
	}, false)
}

func firstEqual() {
	TEXT("firstEqualAVX2", NOSPLIT, "func(a *int64, n int, value int64) int")
	Doc("firstEqualAVX2 is:",
		"",
		"\tfor i := range n {",
		"\t\tif a[i] == value {",
		"\t\t\treturn i",
		"\t\t}",
		"\t}",
		"\treturn n")
	Pragma("noescape")
	a := Load(Param("a"), GP64())
	value := Load(Param("value"), GP64())
	same := YMM()
	VMOVQ(value, same.AsX())
	VPBROADCASTQ(same.AsX(), same)
	scan(func(at operand.Mem, v reg.VecVirtual) {
		VPCMPEQQ(operand.Mem{Base: a, Index: at.Index, Scale: 8, Disp: at.Disp}, same, v)
	}, func(index reg.Register, found operand.LabelRef) {
		CMPQ(value, operand.Mem{Base: a, Index: index, Scale: 8})
		JE(found)
	}, true)
}

// scan returns the first index at which equality is as wanted. It compares eight elements per
// iteration, then single elements within the iteration that contains the index.
func scan(compare func(at operand.Mem, equal reg.VecVirtual), one func(index reg.Register, found operand.LabelRef), wanted bool) {
	n, i, mask := Load(Param("n"), GP64()), GP64(), GP32()
	XORQ(i, i)
	left := GP64()
	MOVQ(n, left)
	Label("loop")
	SUBQ(operand.Imm(8), left)
	JL(operand.LabelRef("single"))
	x, y := YMM(), YMM()
	compare(operand.Mem{Index: i}, x)
	compare(operand.Mem{Index: i, Disp: 32}, y)
	if wanted {
		VPOR(y, x, x)
	} else {
		VPAND(y, x, x)
	}
	VMOVMSKPD(x, mask)
	if wanted {
		TESTL(mask, mask)
	} else {
		CMPL(mask, operand.Imm(15))
	}
	JNE(operand.LabelRef("single"))
	ADDQ(operand.Imm(8), i)
	JMP(operand.LabelRef("loop"))
	Label("single")
	CMPQ(i, n)
	JGE(operand.LabelRef("found"))
	one(i, "found")
	INCQ(i)
	JMP(operand.LabelRef("single"))
	Label("found")
	VZEROUPPER()
	Store(i, ReturnIndex(0))
	RET()
}
