//go:build amd64 && !purego

package checkpoint

import (
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

//go:generate go -C ../internal/asmgen run ./average -out ../../checkpoint/kernel_amd64.s -stubs ../../checkpoint/stubs_amd64.go -pkg checkpoint

// simd returns how many of n numbers the kernels process.
func simd(n int) int {
	if tier.Current() == tier.Scalar || !cpu.X86.HasF16C {
		return 0
	}
	return n &^ 7
}

// scaleSIMD processes the first numbers and returns how many.
func scaleSIMD(sums []float64, data []byte, dtype string, weight float64) int {
	n := simd(len(sums))
	if n == 0 {
		return 0
	}
	s, d := unsafe.SliceData(sums), unsafe.SliceData(data)
	switch dtype {
	case "F64":
		scaleF64(s, d, n, weight)
	case "F32":
		scaleF32(s, d, n, weight)
	case "BF16":
		scaleBF16(s, d, n, weight)
	case "F16":
		scaleF16(s, d, n, weight)
	}
	return n
}

// accumulateSIMD processes the first numbers and returns how many.
func accumulateSIMD(sums []float64, data []byte, dtype string, weight float64) int {
	n := simd(len(sums))
	if n == 0 {
		return 0
	}
	s, d := unsafe.SliceData(sums), unsafe.SliceData(data)
	switch dtype {
	case "F64":
		accumulateF64(s, d, n, weight)
	case "F32":
		accumulateF32(s, d, n, weight)
	case "BF16":
		accumulateBF16(s, d, n, weight)
	case "F16":
		accumulateF16(s, d, n, weight)
	}
	return n
}

// quotientSIMD processes the first numbers and returns how many. It returns 0 if one of the
// results is not finite; the plain loop then handles all of them.
func quotientSIMD(dst []byte, sums []float64, dtype string, total float64) int {
	n := simd(len(sums))
	if n == 0 {
		return 0
	}
	d, s := unsafe.SliceData(dst), unsafe.SliceData(sums)
	var special uint64
	switch dtype {
	case "F64":
		special = quotientF64(d, s, n, total)
	case "F32":
		special = quotientF32(d, s, n, total)
	case "BF16":
		special = quotientBF16(d, s, n, total)
	case "F16":
		special = quotientF16(d, s, n, total)
	}
	if special != 0 {
		return 0
	}
	return n
}
