package prior

import (
	"github.com/pcrm-project/pcrm/pcrm/internal/argument"
	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
)

// eachPair writes f of each pair of rows to dst.
func eachPair[F Float, I, O Int](dst []F, chosen []I, chosenOffsets []O, rejected []I, rejectedOffsets []O, f func(c, r []I) float64) error {
	if err := checkOffsets("chosen_ids", len(dst), len(chosen), chosenOffsets); err != nil {
		return err
	}
	if err := checkOffsets("rejected_ids", len(dst), len(rejected), rejectedOffsets); err != nil {
		return err
	}
	parallel.Rows(len(dst), raggedGrain(len(dst), len(chosen)+len(rejected)), func(lo, hi int) {
		for i := lo; i < hi; i++ {
			dst[i] = F(f(chosen[chosenOffsets[i]:chosenOffsets[i+1]], rejected[rejectedOffsets[i]:rejectedOffsets[i+1]]))
		}
	})
	return nil
}

// raggedGrain returns the number of rows that hold about 64 Ki values on average, so that each
// task of a worker takes at least ten microseconds.
func raggedGrain(rows, values int) int {
	return 1 + int(min(1, (1<<16)/float64(values+1))*float64(rows))
}

func checkOffsets[O Int](name string, rows, values int, offsets []O) error {
	if len(offsets) != rows+1 {
		return argument.Errorf(name, -1, "must have %d offsets for %d rows, got %d", rows+1, rows, len(offsets))
	}
	last := O(0)
	for i, o := range offsets {
		if o < last || int64(o) > int64(values) {
			return argument.Errorf(name, i, "must have an offset in [%d, %d], got %d", last, values, o)
		}
		last = o
	}
	return nil
}
