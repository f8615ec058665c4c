//go:build !amd64 || purego

package ids

// FirstDifference returns the first index at which a and b differ, the length of the shorter
// one where they do not.
func FirstDifference(a, b []int64) int { return scalarFirstDifference(a, b) }

// FirstEqual returns the first index of a value, len(a) where there is none.
func FirstEqual(a []int64, value int64) int { return scalarFirstEqual(a, value) }
