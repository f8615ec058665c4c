package prior

import "github.com/pcrm-project/pcrm/pcrm/internal/ids"

// LengthRatio returns the ratio of the lengths of two responses in tokens, not counting
// the tokens that they share at the start (arXiv 2404.00978, section 3.2.1):
//
//	k = first index at which chosen and rejected differ
//	s = min(a, b)/max(a, b), where a and b count the tokens from k on
//
// Both slices may begin with the same prompt, because the common start is not counted. A
// response ends at the first padToken at or after k, or at the end of its slice. Use
// [NoPad] if there is no padding. Padding is on the right. Two responses that are equal,
// or both empty, have s = 1. If one response is the start of the other, s = 0.
//
// (The authors' script gives 0 for identical responses in a padded row, but by their
// definition s = 1.)
func LengthRatio[I Int](chosen, rejected []I, padToken I) float64 {
	k := commonPrefix(chosen, rejected)
	a, b := responseLength(chosen[k:], padToken), responseLength(rejected[k:], padToken)
	if a == b {
		return 1
	}
	return float64(min(a, b)) / float64(max(a, b))
}

// commonPrefix returns the first index at which two responses differ, or the length of
// the shorter one if there is none. Columns often consist mostly of long prompts. Ids of
// type int64, as in data sets, are compared by a kernel that runs at memory speed.
func commonPrefix[I Int](a, b []I) int {
	if x, ok := any(a).([]int64); ok {
		return ids.FirstDifference(x, any(b).([]int64))
	}
	n := min(len(a), len(b))
	b = b[:n]
	for k, id := range a[:n] {
		if id != b[k] {
			return k
		}
	}
	return n
}

func responseLength[I Int](row []I, padToken I) int {
	if padToken != NoPad {
		for i, id := range row {
			if id == padToken {
				return i
			}
		}
	}
	return len(row)
}

// LengthRatios writes the [LengthRatio] of each pair of rows to dst, rounded once.
// Row i of a ragged column is values[offsets[i]:offsets[i+1]], the layout of an
// Arrow list array (int32) or large list array (int64). A padded matrix has the
// offsets 0, width, 2*width, ...
//
// Errors, each a *pcrm.ArgumentError: offsets whose length is not len(dst)+1, that
// decrease, or that are outside the values.
func LengthRatios[F Float, I, O Int](dst []F, chosen []I, chosenOffsets []O, rejected []I, rejectedOffsets []O, padToken I) error {
	return eachPair(dst, chosen, chosenOffsets, rejected, rejectedOffsets, func(c, r []I) float64 {
		return LengthRatio(c, r, padToken)
	})
}
