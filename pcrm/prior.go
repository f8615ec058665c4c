package pcrm

// NoPad is the pad token id of responses that hold no padding: no tokenizer gives
// a negative id.
const NoPad = -1

// LengthRatio is the prior similarity of two responses by their lengths in tokens,
// after the tokens that they share at the start (arXiv 2404.00978, section 3.2.1):
//
//	k = first index at which chosen and rejected differ
//	s = min(a, b)/max(a, b), where a and b count the tokens from k on
//
// Both may begin with the same prompt, which the common start takes away. A
// response ends at the first padToken at or after k, or where its slice ends; use
// [NoPad] where there is no padding. Padding is on the right. Two responses that
// are equal, or both empty, have s = 1; one that is the start of the other has 0.
//
// (The authors' script gives 0 to identical responses in a padded row; s = 1 is
// what their definition says.)
func LengthRatio(chosen, rejected []int64, padToken int64) float64 {
	k := 0
	for k < len(chosen) && k < len(rejected) && chosen[k] == rejected[k] {
		k++
	}
	a, b := responseLength(chosen[k:], padToken), responseLength(rejected[k:], padToken)
	if a == b {
		return 1
	}
	return float64(min(a, b)) / float64(max(a, b))
}

func responseLength(ids []int64, padToken int64) int {
	if padToken != NoPad {
		for i, id := range ids {
			if id == padToken {
				return i
			}
		}
	}
	return len(ids)
}

// LengthRatios writes the [LengthRatio] of each pair of rows to dst, rounded once.
// Row i of a ragged column is values[offsets[i]:offsets[i+1]], the layout of an
// Arrow list array; a padded matrix has the offsets 0, width, 2*width, ...
//
// Errors, each an [*ArgumentError]: offsets whose length is not len(dst)+1, that
// descend or leave their values.
func LengthRatios[F Float](dst []F, chosen, chosenOffsets, rejected, rejectedOffsets []int64, padToken int64) error {
	if err := checkOffsets("chosen_ids", len(dst), len(chosen), chosenOffsets); err != nil {
		return err
	}
	if err := checkOffsets("rejected_ids", len(dst), len(rejected), rejectedOffsets); err != nil {
		return err
	}
	for i := range dst {
		dst[i] = F(LengthRatio(
			chosen[chosenOffsets[i]:chosenOffsets[i+1]],
			rejected[rejectedOffsets[i]:rejectedOffsets[i+1]],
			padToken))
	}
	return nil
}

func checkOffsets(name string, rows, values int, offsets []int64) error {
	if len(offsets) != rows+1 {
		return argErr(name, -1, "have %d offsets, %d rows need %d", len(offsets), rows, rows+1)
	}
	last := int64(0)
	for i, o := range offsets {
		if o < last || o > int64(values) {
			return argErr(name, i, "has offset %d, must be in [%d, %d]", o, last, values)
		}
		last = o
	}
	return nil
}
