// Package ids searches rows of token ids.
package ids

// NoPad is the pad token id to use for responses without padding. No tokenizer has
// negative ids.
const NoPad = -1

// scalarFirstDifference returns the length of the common prefix.
func scalarFirstDifference(a, b []int64) int {
	n := min(len(a), len(b))
	for i, v := range a[:n] {
		if v != b[i] {
			return i
		}
	}
	return n
}

func scalarFirstEqual(a []int64, value int64) int {
	for i, v := range a {
		if v == value {
			return i
		}
	}
	return len(a)
}
