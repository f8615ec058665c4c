//go:build amd64 && !purego

package ids

import (
	"unsafe"

	"github.com/pcrm-project/pcrm/pcrm/internal/tier"
)

//go:generate go -C ../asmgen run ./ids -out ../ids/kernel_amd64.s -stubs ../ids/stubs_amd64.go -pkg ids

// FirstDifference returns the first index at which a and b differ, or the length of the shorter
// slice if there is none.
func FirstDifference(a, b []int64) int {
	if tier.Current() == tier.Scalar {
		return scalarFirstDifference(a, b)
	}
	return firstDifferenceAVX2(unsafe.SliceData(a), unsafe.SliceData(b), min(len(a), len(b)))
}

// FirstEqual returns the first index of value, or len(a) if there is none.
func FirstEqual(a []int64, value int64) int {
	if tier.Current() == tier.Scalar {
		return scalarFirstEqual(a, value)
	}
	return firstEqualAVX2(unsafe.SliceData(a), len(a), value)
}
