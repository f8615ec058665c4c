package pcrm

import (
	"sync"
	"sync/atomic"
)

// parallelRows calls f on disjoint ranges that cover [0, n), each of grain rows or
// fewer, on as many goroutines as [SetNumThreads] allows. One range is done by the
// caller. A panic of f reaches the caller: in a goroutine of its own it would end
// a process that the caller's recover was there to save.
func parallelRows(n, grain int, f func(lo, hi int)) {
	chunks := (n + grain - 1) / grain
	workers := min(NumThreads(), chunks)
	if workers <= 1 {
		f(0, n)
		return
	}
	var (
		next     atomic.Int64
		panicked atomic.Pointer[any]
		wait     sync.WaitGroup
	)
	work := func() {
		defer func() {
			if p := recover(); p != nil {
				panicked.CompareAndSwap(nil, &p)
			}
		}()
		for c := int(next.Add(1)) - 1; c < chunks; c = int(next.Add(1)) - 1 {
			f(c*grain, min((c+1)*grain, n))
		}
	}
	for range workers - 1 {
		wait.Go(work)
	}
	work()
	wait.Wait()
	if p := panicked.Load(); p != nil {
		panic(*p)
	}
}

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
