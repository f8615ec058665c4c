// Package parallel shares rows out among goroutines.
package parallel

import (
	"sync"
	"sync/atomic"
)

// Rows calls f on disjoint ranges that cover [0, n), each of grain rows or fewer, on
// as many goroutines as workers. One range is done by the caller. A panic of f
// reaches the caller: in a goroutine of its own it would end a process that the
// caller's recover was there to save.
func Rows(workers, n, grain int, f func(lo, hi int)) {
	chunks := (n + grain - 1) / grain
	workers = min(workers, chunks)
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
