package pcrm

import (
	"sync/atomic"

	"github.com/pcrm-project/pcrm/pcrm/internal/parallel"
)

// parallelRows is [parallel.Rows] on as many goroutines as [SetNumThreads] allows.
func parallelRows(n, grain int, f func(lo, hi int)) { parallel.Rows(NumThreads(), n, grain, f) }

// firstRow keeps the lowest row that a worker reports, so that an error names the
// same row however the work was split.
type firstRow struct{ past atomic.Int64 } // the row + 1; 0 is none

func (f *firstRow) report(row int) {
	for {
		old := f.past.Load()
		if old != 0 && old <= int64(row)+1 || f.past.CompareAndSwap(old, int64(row)+1) {
			return
		}
	}
}

// row is -1 where nothing was reported.
func (f *firstRow) row() int { return int(f.past.Load()) - 1 }
