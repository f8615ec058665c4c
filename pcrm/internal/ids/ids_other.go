//go:build !amd64 || purego

package ids

// FirstDifference returns the first index at which a and b differ, or the length of the shorter
// slice if there is none.
func FirstDifference(a, b []int64) int { return scalarFirstDifference(a, b) }

// FirstEqual returns the first index of value, or len(a) if there is none.
func FirstEqual(a []int64, value int64) int { return scalarFirstEqual(a, value) }
