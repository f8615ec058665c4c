// Package parallel shares work out among goroutines.
package parallel

import (
	"runtime"
	"sync/atomic"
)

var numThreads atomic.Int32

// SetNumThreads limits how many threads one call may use; 0, the default, stands for
// GOMAXPROCS.
func SetNumThreads(n int) { numThreads.Store(int32(max(n, 0))) }

// NumThreads returns how many threads one call may use.
func NumThreads() int {
	if n := int(numThreads.Load()); n > 0 {
		return n
	}
	return runtime.GOMAXPROCS(0)
}

// Job is work that is cut into blocks, which goroutines take in turn. It may be run again and
// again, and then allocates nothing.
type Job struct {
	block    func(b int)
	free     func()
	blocks   int
	next     atomic.Int64
	panicked atomic.Pointer[any]

	// A helper that wakes late must not be waited for: it may come as long as the job
	// is not closed, and the job is used again when the last has looked.
	helping atomic.Int64  // how many helpers are at work, and closed
	done    chan struct{} // the last of them left after closing
	holders atomic.Int32  // the caller and the helpers that were called
	help    func()        // kept, because a method value allocates
}

const closed = 1 << 32

// NewJob returns a job that its caller holds. block does one block. free is called when the
// caller has released the job and the last helper has left: it may then be run again.
func NewJob(block func(b int), free func()) *Job {
	j := &Job{block: block, free: free, done: make(chan struct{}, 1)}
	j.help = j.helper
	j.Hold()
	return j
}

// Hold takes a job that is free.
func (j *Job) Hold() { j.holders.Store(1) }

// Release gives the job back.
func (j *Job) Release() {
	if j.holders.Add(-1) == 0 {
		j.free()
	}
}

func (j *Job) helper() {
	defer j.Release()
	for n := j.helping.Load(); n < closed; n = j.helping.Load() {
		if j.helping.CompareAndSwap(n, n+1) {
			j.work()
			if j.helping.Add(-1) == closed {
				j.done <- struct{}{}
			}
			return
		}
	}
}

// Run does all blocks, on at most so many goroutines. One of them is the caller's. A panic of a
// block reaches the caller: in a goroutine of its own it would end a process that the caller's
// recover was there to save.
func (j *Job) Run(blocks, workers int) {
	j.blocks = blocks
	j.next.Store(0)
	j.helping.Store(0)
	helpers := min(workers, blocks) - 1
	if helpers <= 0 {
		for b := range blocks {
			j.block(b)
		}
		return
	}
	j.panicked.Store(nil)
	j.holders.Add(int32(helpers))
	for range helpers {
		go j.help()
	}
	j.work()
	if j.helping.Add(closed) > closed {
		<-j.done
	}
	if p := j.panicked.Load(); p != nil {
		panic(*p)
	}
}

func (j *Job) work() {
	defer func() {
		if p := recover(); p != nil {
			j.panicked.CompareAndSwap(nil, &p)
		}
	}()
	for b := int(j.next.Add(1)) - 1; b < j.blocks; b = int(j.next.Add(1)) - 1 {
		j.block(b)
	}
}

// Rows calls f on disjoint ranges that cover [0, n), each of grain rows or fewer, on as many
// goroutines as [NumThreads]. A panic of f reaches the caller. With one range or one thread
// there is one call, f(0, n).
func Rows(n, grain int, f func(lo, hi int)) {
	chunks := (n + grain - 1) / grain
	workers := min(NumThreads(), chunks)
	if workers <= 1 {
		f(0, n)
		return
	}
	NewJob(func(c int) { f(c*grain, min((c+1)*grain, n)) }, func() {}).Run(chunks, workers)
}

// FirstRow keeps the lowest row that a worker reports, so that an error names the
// same row however the work was split. The zero value has none.
type FirstRow struct{ past atomic.Int64 } // the row + 1; 0 is none

// Report takes a row.
func (f *FirstRow) Report(row int) {
	for {
		old := f.past.Load()
		if old != 0 && old <= int64(row)+1 || f.past.CompareAndSwap(old, int64(row)+1) {
			return
		}
	}
}

// Row is the lowest row, and -1 where nothing was reported.
func (f *FirstRow) Row() int { return int(f.past.Load()) - 1 }
